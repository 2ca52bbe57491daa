#include "migrate/destination_descriptors.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "base/caught.hpp"
#include "objects/common.hpp"

namespace godwit::migrate {

namespace {

class TracedStub : public objects::Stub {
 public:
  TracedStub(HostPid process, Hand hand) : process_(process), hand_(hand) {}
  [[nodiscard]] HostPid process() const override { return process_; }
  [[nodiscard]] int builder() const override { return 0; }
  [[nodiscard]] kernel::Batch batch() const override { return hand_.gadget.batch(); }
  Result<void> run(kernel::Batch& batch) override { return hand_.run(batch); }

 private:
  HostPid process_;
  Hand hand_;
};

}  // namespace

Result<void> DestinationDescriptors::build_ahead(std::vector<objects::AheadImage> images) {
  for (auto& image : images) {
    const auto key = image.key;
    if (auto built = ahead_.build(std::move(image), *this); !built)
      return std::unexpected(std::move(built).error().within(fmt::format("build object {} ahead", key)));
  }
  return {};
}

Result<void> DestinationDescriptors::install_ahead(PodPid process, int builder, Hand hand) {
  const auto held = ahead_.held_by(process);
  if (held.empty()) return {};
  auto& installed = installed_[process.value];
  int lowest_free = builder + 1;
  auto batch = hand.gadget.batch();
  // What doesn't get its number, for a limit of the stub's, say, gets it with all others.
  std::vector<std::tuple<int, std::uint32_t, kernel::Batch::Call>> made;
  const auto run = [&]() -> Result<void> {
    TRY(hand.run(batch));
    for (const auto& [number, key, call] : std::exchange(made, {}))
      if (batch.result(call) == number) installed[number] = key;
    batch = hand.gadget.batch();
    return {};
  };
  for (const auto& [key, holder] : held) {
    if (holder->number <= builder) continue;
    if (batch.full(4, 0)) TRY(run());
    const auto number = static_cast<std::uint64_t>(holder->number);
    const auto got = batch.call(
        SYS_pidfd_getfd, {static_cast<std::uint64_t>(builder), static_cast<std::uint64_t>(ahead_.built(key)), 0});
    if (holder->number == lowest_free++) {
      made.emplace_back(holder->number, key, got);
      continue;
    }
    --lowest_free;
    const auto moved = batch.call(SYS_dup3, {0, number, O_CLOEXEC});
    batch.forward(got, moved, 0);
    const auto closed = batch.call(SYS_close, {0});
    batch.forward(got, closed, 0);
    made.emplace_back(holder->number, key, moved);
  }
  return run();
}

Result<void> DestinationDescriptors::build(std::vector<objects::Image> images, const std::vector<objects::Kept>& kept) {
  images_ = std::move(images);
  // Whatever becomes of it, whoever serves meanwhile must hear that it is over.
  auto outcome = caught([&] { return build_all(kept); });
  const std::scoped_lock lock(mutex_);
  finished_ = true;
  changed_.notify_all();
  return outcome;
}

bool DestinationDescriptors::serve(const std::function<bool()>& until,
                                   const std::function<std::optional<Hand>(PodPid)>& find) {
  constexpr auto moment = std::chrono::microseconds(100);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait_for(lock, moment, [&] { return finished_ || request_ != nullptr; });
    if (request_ != nullptr) {
      Request& request = *std::exchange(request_, nullptr);
      lock.unlock();
      // The workshop waits for an outcome, whatever it is.
      auto outcome = caught([&]() -> Result<void> {
        const auto hand = find(request.process);
        const auto host = host_pid(request.process);
        if (!hand || !host) return fail(ErrorKind::not_found, "process {} is not there", request.process.value);
        TracedStub stub(*host, *hand);
        return request.work(stub);
      });
      lock.lock();
      request.outcome = std::move(outcome);
      changed_.notify_all();
      continue;
    }
    if (finished_) return true;
    if (until()) return false;
  }
}

void DestinationDescriptors::dismiss() {
  const std::scoped_lock lock(mutex_);
  dismissed_ = true;
  changed_.notify_all();
}

Result<void> DestinationDescriptors::as_process(PodPid process,
                                                const std::function<Result<void>(objects::Stub&)>& work) {
  if (!host_pid(process)) return fail(ErrorKind::not_found, "process {} is not there", process.value);
  Request request{process, work, {}};
  std::unique_lock lock(mutex_);
  request_ = &request;
  changed_.notify_all();
  // What is being served is waited for: it uses what is on our stack.
  changed_.wait(lock, [&] { return request.outcome.has_value() || (dismissed_ && request_ == &request); });
  if (request.outcome) return std::move(*request.outcome);
  request_ = nullptr;
  return fail(ErrorKind::cancelled, "the rebuild was given up");
}

Result<void> DestinationDescriptors::build_all(const std::vector<objects::Kept>& kept) {
  built_.resize(images_.size());
  for (const auto& each : kept) {
    if (each.id >= images_.size()) return fail(ErrorKind::invalid, "object {} of {}", each.id, images_.size());
    images_[each.id] = {std::string(objects::AheadDestination::kind),
                        {},
                        {},
                        each.holders.empty() ? ahead_.holders(each.key) : each.holders};
    built_[each.id] = ahead_.take(each.key);
    kept_[each.id] = each.key;
  }
  ahead_.clear();
  for (std::size_t id = 0; id < images_.size(); ++id) {
    if (built_[id]) continue;
    const auto* kind = objects::kind_named(images_[id].kind);
    if (kind == nullptr) return fail(ErrorKind::invalid, "unknown kind of object {}", images_[id].kind);
    auto fd = kind->build(images_[id].state, *this);
    if (!fd) return std::unexpected(std::move(fd).error().within(fmt::format("rebuild {} {}", images_[id].kind, id)));
    built_[id] = std::move(*fd);
    if (!images_[id].common.empty())
      TRY(objects::apply_common(TRY(image::unpack<objects::Common>(images_[id].common)), built_[id].get(), *this));
  }
  return all_built();
}

Result<void> DestinationDescriptors::install(PodPid process, int builder, kernel::Batch& batch, Hand hand) {
  Wanted wanted;
  for (std::size_t id = 0; id < images_.size(); ++id)
    for (const auto& holder : images_[id].holders)
      if (holder.process == process &&
          !wanted.emplace(holder.number, std::pair(&holder, static_cast<objects::ObjectId>(id))).second)
        return fail(ErrorKind::invalid, "two descriptors with the number {}", holder.number);
  const auto taken = TRY(settle_installed(process, wanted, batch, hand));

  // Nothing else is open below the builder's number, so the kernel gives out the lowest number that isn't taken yet:
  // known in advance.
  int lowest_free = 0;
  const auto skip_taken = [&] {
    while (taken.contains(lowest_free)) ++lowest_free;
  };
  skip_taken();
  for (const auto& [number, entry] : wanted) {
    const auto& [holder, id] = entry;
    if (batch.full(4, 0)) {
      TRY(hand.run(batch));
      batch = hand.gadget.batch();
    }
    const auto what = fmt::format("install descriptor {}", number);
    const auto place = static_cast<std::uint64_t>(number);
    if (number >= builder || number < lowest_free) return fail(ErrorKind::invalid, "{}: out of order", what);
    const auto got = batch.must(what, SYS_pidfd_getfd,
                                {static_cast<std::uint64_t>(builder), static_cast<std::uint64_t>(built_[id].get()), 0});
    if (number == lowest_free) {
      if (!holder->close_on_exec) batch.must(what, SYS_fcntl, {place, F_SETFD, 0});
      ++lowest_free;
      skip_taken();
    } else {
      const auto moved = batch.must(what, SYS_dup3, {0, place, holder->close_on_exec ? O_CLOEXEC : 0ULL});
      batch.forward(got, moved, 0);
      const auto closed = batch.must(what, SYS_close, {0});
      batch.forward(got, closed, 0);
    }
  }
  return {};
}

/// What was put into the table ahead stays where it is what the process has there now, and goes elsewhere. Gives the
/// numbers that are taken so.
Result<std::set<int>> DestinationDescriptors::settle_installed(PodPid process, Wanted& wanted, kernel::Batch& batch,
                                                               Hand hand) {
  std::set<int> taken;
  for (const auto& [number, key] : installed_[process.value]) {
    if (batch.full(1, 0)) {
      TRY(hand.run(batch));
      batch = hand.gadget.batch();
    }
    const auto place = static_cast<std::uint64_t>(number);
    const auto found = wanted.find(number);
    const auto kept = found == wanted.end() ? kept_.end() : kept_.find(found->second.second);
    if (kept == kept_.end() || kept->second != key) {
      batch.must("close what was built ahead", SYS_close, {place});
      continue;
    }
    if (!found->second.first->close_on_exec) batch.must("set close-on-exec", SYS_fcntl, {place, F_SETFD, 0});
    taken.insert(number);
    wanted.erase(found);
  }
  return taken;
}

void DestinationDescriptors::set_close_on_exec(PodPid process, const std::vector<int>& numbers) {
  const std::set<int> wanted(numbers.begin(), numbers.end());
  for (auto& image : images_)
    for (auto& holder : image.holders)
      if (holder.process == process) holder.close_on_exec = wanted.contains(holder.number);
}

Result<void> DestinationDescriptors::attach(PodPid process, kernel::Batch& batch, Hand hand) {
  for (const auto& image : images_) {
    for (const auto& holder : image.holders) {
      if (holder.process != process) continue;
      // An epoll instance has many registrations.
      const std::size_t calls = image.kind == "epoll" ? 1088 : 64;
      if (batch.full(calls, 16 * KiB)) {
        TRY(hand.run(batch));
        batch = hand.gadget.batch();
      }
      TRY(objects::kind_named(image.kind)->attach(image.state, holder, batch, *this));
    }
  }
  return {};
}

Result<void> DestinationDescriptors::open() {
  Result<void> outcome;
  for (std::size_t id = 0; id < images_.size(); ++id) {
    auto done = objects::kind_named(images_[id].kind)->open(images_[id].state, built_[id].get(), *this);
    // This is the only copy now: what can be opened is opened, and the first failure is told.
    if (!done && outcome)
      outcome = std::unexpected(std::move(done).error().within(fmt::format("open {} {}", images_[id].kind, id)));
  }
  return outcome;
}

int DestinationDescriptors::highest_number(const std::vector<objects::Image>& images,
                                           const std::vector<objects::Kept>& kept) const {
  int highest = 2;
  for (const auto& each : kept)
    for (const auto& holder : each.holders.empty() ? ahead_.holders(each.key) : each.holders)
      highest = std::max(highest, holder.number);
  for (const auto& [process, numbers] : installed_)
    if (!numbers.empty()) highest = std::max(highest, numbers.rbegin()->first);
  for (const auto& image : images)
    for (const auto& holder : image.holders) highest = std::max(highest, holder.number);
  return highest;
}

Result<Fd> DestinationDescriptors::stream(const std::string& name) {
  if (!streams_.contains(name)) {
    const auto slash = name.find('/');
    streams_.merge(TRY(pod_.streams(slash == std::string::npos ? "" : name.substr(0, slash))));
  }
  const auto found = streams_.find(name);
  if (found == streams_.end()) return fail(ErrorKind::invalid, "the pod has no stream {}", name);
  Fd copy(::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_errno("duplicate stream {}", name);
  return copy;
}

std::optional<HostPid> DestinationDescriptors::host_pid(PodPid pod) const {
  const auto found = processes_.find(pod.value);
  return found == processes_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace godwit::migrate
