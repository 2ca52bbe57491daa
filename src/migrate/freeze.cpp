#include "migrate/freeze.hpp"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <set>
#include <sstream>
#include <thread>

#include "kernel/procfs.hpp"
#include "objects/interrupted.hpp"

namespace godwit::migrate {

namespace {

constexpr auto stop_limit = std::chrono::milliseconds(20);
/// For as long, a vfork child runs on while all else is stopped.
constexpr auto vfork_limit = std::chrono::milliseconds(200);

bool is_gone(const Error& error) {
  return error.kind == ErrorKind::gone;
}

/// Calls that are never restarted after a signal handler show EINTR to the program although it was only us: they are
/// made again, with their whole time.
Result<void> hide_interruption(kernel::Tracee& thread) {
  constexpr std::uint64_t restart_unless_handled = static_cast<std::uint64_t>(-514);  // the kernel's ERESTARTNOHAND
  auto registers = TRY(thread.registers());
  if (static_cast<std::int64_t>(registers.rax) != -EINTR) return {};
  const auto interrupted = TRY(objects::describe(thread, registers, {}, {}));
  if (interrupted.how == "no") return {};
  registers.rax = restart_unless_handled;
  return thread.set_registers(registers);
}

bool is_ending(HostPid tid) {
  const auto status = kernel::read_status(tid);
  return !status || status->state == 'Z' || status->state == 'X';
}

/// Makes every thread that isn't ours yet a tracee, which it doesn't notice. True when there was one.
Result<bool> seize_new(HostPid init, const std::vector<ProcessIds>& tree, std::vector<FrozenProcess>& frozen,
                       std::set<pid_t>& seized) {
  bool grew = false;
  for (const auto& process : tree) {
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
      // A thread that is just ending can't be seized any more.
      if (!tracee && tracee.error().code == EPERM && is_ending(ids.host)) continue;
      if (!tracee && is_gone(tracee.error())) continue;
      if (!tracee) return std::unexpected(tracee.error());
      if (!is_of(init, process.pod, ids.host, ids.pod)) {
        // It has ended, and its number is somebody else's: of the pod, perhaps, which another look at the tree tells.
        let_go(*tracee);
        seized.erase(ids.host.value);
        continue;
      }
      known->threads.push_back({ids, std::move(*tracee)});
      grew = true;
    }
  }
  return grew;
}

/// Asks every tracee that runs to stop.
Result<void> ask_to_stop(const FreezeHooks& hooks, std::vector<FrozenProcess>& frozen) {
  for (auto& process : frozen) {
    for (auto& thread : process.threads) {
      if (thread.tracee.stopped()) continue;
      auto asked = thread.tracee.interrupt();
      if (asked)
        hooks.asked(thread.ids.host);
      else if (!is_gone(asked.error()))
        return asked;
    }
  }
  return {};
}

/// Those children of a thread that have its memory.
std::vector<HostPid> vfork_children(HostPid process, HostPid thread) {
  std::vector<HostPid> found;
  const auto text = kernel::read_file(process, fmt::format("task/{}/children", thread.value));
  std::istringstream words(text.value_or(""));
  for (pid_t child = 0; words >> child;)
    if (::syscall(SYS_kcmp, thread.value, child, KCMP_VM, 0, 0) == 0) found.push_back(HostPid{child});
  return found;
}

/// Lets a process go on that has been stopped altogether.
void let_run(HostPid host, std::vector<FrozenProcess>& frozen, std::set<pid_t>& seized) {
  const auto process = std::ranges::find_if(frozen, [&](const FrozenProcess& p) { return p.ids.host == host; });
  if (process == frozen.end() ||
      !std::ranges::all_of(process->threads, [](const FrozenThread& thread) { return thread.tracee.stopped(); }))
    return;
  for (auto& thread : process->threads) {
    (void)hide_interruption(thread.tracee);
    (void)thread.tracee.detach();
    seized.erase(thread.ids.host.value);
  }
  process->threads.clear();
}

/// Waits for all that were asked. `busy` when one doesn't stop; the dead are dropped. The parent of a vfork stops when
/// its child has executed another program or ended: the child is let go on until then, and has to be stopped anew.
Result<void> await_stops(std::vector<FrozenProcess>& frozen, std::set<pid_t>& seized) {
  constexpr auto step = std::chrono::milliseconds(2);
  const auto began = std::chrono::steady_clock::now();
  auto give_up = began + stop_limit;
  for (;;) {
    std::vector<std::pair<HostPid, HostPid>> running;  // process and thread
    for (auto& process : frozen) {
      std::erase_if(process.threads, [&](FrozenThread& thread) {
        if (thread.tracee.stopped()) return false;
        auto stopped = thread.tracee.wait_stop(step);
        if (!stopped && !is_gone(stopped.error())) running.emplace_back(process.ids.host, thread.ids.host);
        return !stopped && is_gone(stopped.error());
      });
    }
    if (running.empty()) return {};
    const auto now = std::chrono::steady_clock::now();
    for (const auto& [process, thread] : running) {
      const auto children = vfork_children(process, thread);
      if (!children.empty()) give_up = std::min(now + stop_limit, began + vfork_limit);
      for (const auto child : children) let_run(child, frozen, seized);
    }
    if (now > give_up) return fail(ErrorKind::busy, "thread {} doesn't stop", running.front().second.value);
  }
}

/// Whether every thread of these that lived is stopped now.
bool all_stopped(const std::vector<ProcessIds>& tree, const std::vector<FrozenProcess>& frozen) {
  return std::ranges::all_of(tree, [&](const ProcessIds& ids) {
    const auto process = std::ranges::find_if(frozen, [&](const FrozenProcess& p) { return p.ids.host == ids.host; });
    return process != frozen.end() && process->threads.size() == ids.threads.size();
  });
}

/// One whose last thread has ended by itself: how it ended is known as soon as it is a zombie. `gone` when its parent
/// knows already.
Result<void> learn_end(ProcessIds& ids) {
  const auto give_up = std::chrono::steady_clock::now() + stop_limit;
  for (;;) {
    const auto stat = TRY(kernel::read_stat(ids.host));
    ids.exit_code = stat.exit_code;
    if (stat.state == 'Z') return {};
    if (std::chrono::steady_clock::now() > give_up)
      return fail(ErrorKind::busy, "process {} doesn't come to its end", ids.pod.value);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

/// One attempt. `busy` when some thread doesn't stop; `frozen` has what did.
Result<std::vector<FrozenProcess>> try_freeze(HostPid init, const Known& known, const FreezeHooks& hooks,
                                              std::vector<FrozenProcess>& frozen, std::int64_t& stopped_at) {
  std::set<pid_t> seized;
  auto tree = known.processes;
  TRY(seize_new(init, tree, frozen, seized));
  TRY(hooks.begin());
  stopped_at = now_ns();
  TRY(ask_to_stop(hooks, frozen));
  TRY(await_stops(frozen, seized));
  const bool as_known = TRY(hooks.last_pid()) == known.last_pid && all_stopped(tree, frozen) && TRY(refresh_tree(tree));
  if (as_known) TRY(seize_new(init, tree, frozen, seized));
  while (!as_known) {
    tree = TRY(read_tree(init));
    const bool grew = TRY(seize_new(init, tree, frozen, seized));
    TRY(ask_to_stop(hooks, frozen));
    TRY(await_stops(frozen, seized));
    if (grew) continue;
    // Again: when it was asked first, somebody may still have been running.
    TRY(hooks.last_pid());
    break;
  }
  // Whoever has gone from the tree isn't waited for: its number may be somebody else's.
  std::erase_if(frozen, [&](const FrozenProcess& process) {
    return process.threads.empty() && std::ranges::find(tree, process.ids.host, &ProcessIds::host) == tree.end();
  });
  for (auto process = frozen.begin(); process != frozen.end();) {
    auto ended = process->threads.empty() && !process->ids.zombie ? learn_end(process->ids) : Result<void>{};
    if (!ended && !is_gone(ended.error())) return std::unexpected(std::move(ended).error());
    process = ended ? process + 1 : frozen.erase(process);
  }
  // What was there at the first look and is not at the last one has ended. Parents stand before children, as in the
  // tree.
  std::vector<FrozenProcess> ordered;
  for (const auto& ids : tree) {
    const auto process = std::ranges::find_if(frozen, [&](const FrozenProcess& p) { return p.ids.host == ids.host; });
    if (process != frozen.end()) ordered.push_back(std::move(*process));
  }
  return ordered;
}

}  // namespace

pod::RaisedThread told_of(PodPid tid, const kernel::RaisedPriority& thread) {
  const auto& before = thread.before();
  return {tid.value, thread.raised_to(), before.policy, before.priority, before.timer_slack};
}

void let_go(kernel::Tracee& thread) {
  if (!thread.stopped() && thread.interrupt()) (void)thread.wait_stop(stop_limit);
  if (thread.stopped()) (void)hide_interruption(thread);
  (void)thread.detach();
}

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

Result<std::vector<FrozenProcess>> freeze_all(HostPid init, const Known& known, const FreezeHooks& hooks,
                                              std::chrono::milliseconds limit, std::int64_t& stopped_at) {
  const auto give_up = std::chrono::steady_clock::now() + limit;
  for (;;) {
    std::vector<FrozenProcess> stopped;
    auto frozen = try_freeze(init, known, hooks, stopped, stopped_at);
    if (!frozen) thaw_all(stopped);
    if (frozen || frozen.error().kind != ErrorKind::busy || std::chrono::steady_clock::now() > give_up) return frozen;
    // A vfork child needs its parent's memory to itself until it execs.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void thaw_all(std::vector<FrozenProcess>& frozen) {
  for (auto& process : frozen) {
    for (auto& thread : process.threads) {
      if (thread.tracee.stopped()) (void)hide_interruption(thread.tracee);
      (void)thread.tracee.detach();
    }
  }
  frozen.clear();
}

}  // namespace godwit::migrate
