#include "migrate/freeze.hpp"

#include <ctime>
#include <algorithm>
#include <set>
#include <thread>

namespace godwit::migrate {

namespace {

constexpr auto stop_limit = std::chrono::milliseconds(20);

bool is_gone(const Error& error) { return error.kind == ErrorKind::gone; }

/// One attempt. `busy` when some thread doesn't stop.
Result<std::vector<FrozenProcess>> try_freeze(HostPid init) {
  std::vector<FrozenProcess> frozen;
  std::set<pid_t> seized;
  for (bool grew = true; grew;) {
    grew = false;
    auto tree = TRY(read_tree(init));
    std::vector<kernel::Tracee*> waiting;
    for (auto& process : tree) {
      auto known = std::ranges::find_if(frozen, [&](const FrozenProcess& p) { return p.ids.host == process.host; });
      if (known == frozen.end()) {
        frozen.push_back({process, {}});
        known = frozen.end() - 1;
      } else {
        known->ids = process;
      }
      for (const auto& ids : process.threads) {
        if (!seized.insert(ids.host.value).second) continue;
        auto tracee = kernel::Tracee::seize(ids.host);
        if (!tracee) {
          if (is_gone(tracee.error())) continue;
          return std::unexpected(tracee.error());
        }
        auto asked = tracee->interrupt();
        if (!asked && is_gone(asked.error())) continue;
        if (!asked) return std::unexpected(asked.error());
        known->threads.push_back({ids, std::move(*tracee)});
        grew = true;
      }
    }
    for (auto& process : frozen) {
      std::erase_if(process.threads, [&](FrozenThread& thread) {
        if (thread.tracee.stopped()) return false;
        auto stopped = thread.tracee.wait_stop(stop_limit);
        return !stopped && is_gone(stopped.error());
      });
      for (const auto& thread : process.threads)
        if (!thread.tracee.stopped())
          return fail(ErrorKind::busy, "thread {} doesn't stop", thread.ids.pod.value);
    }
    // What was there at the first look and is not at the last one has ended.
    if (!grew) {
      std::erase_if(frozen, [&](const FrozenProcess& p) {
        return std::ranges::none_of(tree, [&](const ProcessIds& ids) { return ids.host == p.ids.host; });
      });
    }
  }
  return frozen;
}

}  // namespace

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

Result<std::vector<FrozenProcess>> freeze_all(HostPid init, std::chrono::milliseconds limit, std::int64_t& stopped_at) {
  const auto give_up = std::chrono::steady_clock::now() + limit;
  for (;;) {
    stopped_at = now_ns();
    auto frozen = try_freeze(init);
    if (frozen || frozen.error().kind != ErrorKind::busy || std::chrono::steady_clock::now() > give_up) return frozen;
    // A vfork child needs its parent's memory to itself until it execs.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void thaw_all(std::vector<FrozenProcess>& frozen) {
  for (auto& process : frozen)
    for (auto& thread : process.threads) (void)thread.tracee.detach();
  frozen.clear();
}

}  // namespace godwit::migrate
