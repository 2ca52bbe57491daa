#include "migrate/arrival.hpp"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "base/log.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "migrate/limits.hpp"
#include "migrate/recover.hpp"
#include "migrate/rights.hpp"
#include "objects/nameless.hpp"
#include "pod/network.hpp"

namespace godwit::migrate {

Arrival::Arrival(Stream control, const Accept& accept, const DestinationSite& site)
    : control_(std::move(control)), accept_(accept), site_(site) {}

Arrival::~Arrival() {
  if (reference_) ::shutdown(reference_.fd(), SHUT_RDWR);
  if (descriptors_) descriptors_->dismiss();
  // What it has been given to do uses what goes before it.
  workshop_.reset();
}

Arriving* Arrival::find(PodPid pid) {
  const auto found = processes_.find(pid.value);
  return found == processes_.end() ? nullptr : &found->second;
}

Result<Message> Arrival::next(std::chrono::milliseconds limit) {
  auto message = TRY(control_.receive(limit));
  if (static_cast<wire::Type>(message.type) == wire::Type::abort) {
    const auto why = TRY(image::unpack<wire::Text>(message.payload));
    return fail(ErrorKind::cancelled, "{} gave up: {}", hello_.from, shown(why.text));
  }
  return message;
}

// --- negotiate -------------------------------------------------------------------------------------------------------

std::vector<std::string> Arrival::refusals(const wire::Hello& hello) {
  std::vector<std::string> reasons;
  if (hello.version != wire::protocol)
    return {fmt::format("{} speaks protocol {}, this node {}; run the same version on both", hello.from, hello.version,
                        wire::protocol)};
  auto hashes = pod::HashCache::load(site_.site.state_dir + "/hashes");
  if (auto differences = pod::compare("/", hello.files, hashes)) {
    for (const auto& difference : *differences)
      reasons.push_back(fmt::format("{} {}", difference.path, difference.reason));
  } else {
    reasons.push_back(differences.error().message());
  }
  (void)hashes.save();
  if (hello.connections == 0 || hello.connections > 8)
    reasons.push_back("a migration has one to eight page connections");
  // Other groups than this machine would give its user are root's to give: only who may send root's pods sends those.
  const bool own_groups = pod::has_own_groups(hello.spec.user);
  auto objections = site_.decide(hello.spec, {.memory = hello.resident,
                                              .processors = hello.spec.cpu_limit,
                                              .descriptors = hello.descriptors,
                                              .labels = hello.spec.labels,
                                              .addresses = hello.spec.network.addresses,
                                              .home = hello.spec.home,
                                              .user = own_groups ? hello.spec.user.uid : 0,
                                              .capabilities = hello.spec.capabilities,
                                              .machine = hello.machine});
  if (!own_groups && !objections.empty())
    objections.push_back(fmt::format("it has groups that user {} hasn't on this node, so that it counts as root's",
                                     pod::name_of(hello.spec.user.uid)));
  std::ranges::move(objections, std::back_inserter(reasons));
  return reasons;
}

Result<bool> Arrival::negotiate() {
  auto message = TRY(next(std::chrono::seconds(10)));
  if (static_cast<wire::Type>(message.type) != wire::Type::hello)
    return fail(ErrorKind::invalid, "a migration begins with a hello");
  hello_ = TRY(image::unpack<wire::Hello>(message.payload));
  if (hello_.version == wire::protocol) TRY(check(hello_));
  if (hello_.from != site_.peer)
    return fail(ErrorKind::refused, "{} sends a pod in the name of {}", site_.peer, hello_.from);
  report_.pod = hello_.spec.name;
  report_.source = hello_.from;
  report_.destination = site_.site.node;
  report_.strategy = report_.asked = hello_.strategy;
  const auto reasons = refusals(hello_);
  if (!reasons.empty()) {
    TRY(control_.send(wire::Type::refused, wire::Refused{reasons}));
    return fail(ErrorKind::refused, "{} from {} is refused: {}", hello_.spec.name, hello_.from,
                fmt::join(reasons, "; "));
  }
  TRY(control_.send(wire::Type::welcome, BytesView{}));
  if (hello_.dry_run) {
    // It may want to know how fast the link is.
    for (int asked = 0; asked < 16; ++asked) {
      const auto message = control_.receive(std::chrono::seconds(10));
      if (!message || static_cast<wire::Type>(message->type) != wire::Type::probe) break;
      TRY(control_.send(static_cast<std::uint8_t>(wire::Type::probe), BytesView{}));
    }
    return false;
  }
  constexpr auto limit = std::chrono::seconds(10);
  connections_.resize(hello_.connections);
  for (std::uint32_t i = 0; i <= hello_.connections; ++i) {
    // They may come in another order than they were made: each says first what it is.
    Stream connection = TRY(accept_(limit));
    std::uint8_t role = 0;
    TRY(receive_all(connection, &role, sizeof role, limit));
    Stream& place = role < hello_.connections ? connections_[role] : reference_;
    if (place) return fail(ErrorKind::invalid, "two connections for one purpose");
    place = std::move(connection);
  }
  return true;
}

Result<void> Arrival::answer_clock() {
  wire::Clock now;
  timespec time{};
  ::clock_gettime(CLOCK_BOOTTIME, &time);
  now.boottime = time.tv_sec * 1'000'000'000LL + time.tv_nsec;
  now.monotonic = now_ns();
  return control_.send(wire::Type::clock, now);
}

// --- prepare ---------------------------------------------------------------------------------------------------------

Result<void> Arrival::prepare() {
  for (;;) {
    auto message = TRY(next());
    const auto type = static_cast<wire::Type>(message.type);
    if (type == wire::Type::clock) {
      TRY(answer_clock());
      continue;
    }
    if (type != wire::Type::prepare)
      return fail(ErrorKind::invalid, "unexpected message {} before prepare", message.type);
    prepare_ = TRY(image::unpack<wire::Prepare>(message.payload));
    TRY(check(prepare_));
    const auto& record = prepare_.record;
    if (record.pod != hello_.spec.name || record.id != hello_.spec.id || record.owner != hello_.from)
      return fail(ErrorKind::invalid, "{} has no claim to {}", hello_.from, hello_.spec.name);
    pod_ = TRY(pod::Pod::create(site_.site, hello_.spec, pod::Pod::Arrival{prepare_.clocks, prepare_.at}));
    for (const auto& execution : prepare_.executions) TRY(pod_->restore(execution));
    break;
  }
  clock_ = TRY(objects::PodClock::of(pod_->init()));
  workshop_ = TRY(pod::Workshop::open(pod_->namespaces()));
  TRY(write_journal(*pod_, Journal::begin(true, site_.move, hello_.from, prepare_.record)));
  // Stubs are born with the init's descriptors: this one is how they reach ours.
  const Fd self = TRY(kernel::pidfd_open(HostPid{::getpid()}));
  TRY(pod_->deposit("builder", self.get()));
  TRY(open_trees());
  pages_ = std::make_unique<PageReceiver>(
      std::move(connections_), [this](SpaceId space, std::uint64_t address, const void* data, std::size_t size) {
        return write(space, address, data, size);
      });
  if (const auto& user = hello_.spec.user; !user.is_root()) opener_ = {user.uid, user.gid, user.groups};
  descriptors_ = std::make_unique<DestinationDescriptors>(*pod_, opener_);
  // Once the workshop builds, what its objects share is its own.
  shared_objects_ = &descriptors_->shared<objects::MemoryObjects>("memory-objects");
  return control_.send(wire::Type::ready, BytesView{});
}

Result<void> Arrival::open_trees() {
  const auto& spec = hello_.spec;
  std::error_code error;
  const auto hidden = std::filesystem::weakly_canonical(site_.site.state_dir, error);
  if (error) return fail(ErrorKind::failed, "find {}: {}", site_.site.state_dir, error.message());
  const pod::UpperRights rights{.user = spec.user, .capabilities = spec.capabilities, .hidden = hidden.string()};
  return workshop_->run([this, &rights]() -> Result<void> {
    for (const auto tree : wire::trees) {
      // Without what is mounted on it. An overlay doesn't see what is done to its layers behind its back, so files go
      // through it.
      const bool whole = tree == "/";
      const Fd root(static_cast<int>(
          ::syscall(SYS_open_tree, AT_FDCWD, std::string(tree).c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
      if (!root) return fail_errno("open {} of the pod", tree);
      trees_.push_back(TRY(pod::UpperTarget::open(
          root.get(), whole ? pod::UpperTarget::Kind::overlay : pod::UpperTarget::Kind::layer, rights)));
    }
    return {};
  });
}

Result<void> Arrival::check_rights(PodPid thread, const objects::ThreadSettings& settings) const {
  const auto beyond = beyond_rights(hello_.spec, settings);
  if (beyond.empty()) return {};
  return fail(ErrorKind::refused, "thread {} of {}: {}", thread.value, hello_.spec.name, beyond);
}

/// Whether the pod's user could open all of these (open(2)), asked on the workshop.
Result<void> Arrival::check_paths(const std::set<std::string>& paths, int flags) const {
  for (const auto& path : paths) TRY(objects::check_permission(opener_ ? &*opener_ : nullptr, path, flags));
  return {};
}

/// What needn't be done while the pod stands still. Said once more when the source has had to let the pod go on for a
/// moment.
Result<void> Arrival::expect_freeze(const wire::Freezing& freezing) {
  // The pod ends with this one: with a number that nobody has it never would.
  const Arriving* leader = find(freezing.first);
  if (leader == nullptr || leader->ended || leader->wanted.parent.value != 1)
    return fail(ErrorKind::invalid, "the pod's first process {} is not there", freezing.first.value);
  said_.clear();
  for (const auto& process : freezing.processes)
    for (const auto& thread : process.threads) TRY(check_rights(thread.tid, thread.settings));
  for (const auto& process : freezing.processes) TRY(tell_ahead(process));
  const bool first = raised_.empty();
  if (first) TRY(raise_ourselves(freezing));
  raise_threads();
  return first ? install_ahead() : Result<void>{};
}

Result<void> Arrival::raise_ourselves(const wire::Freezing& freezing) {
  TRY(pod_->set_first(freezing.first));
  TRY(pod_->port().add_neighbours(freezing.neighbours));
  for (const auto pid : order_) TRY(make_session(processes_.at(pid.value)));
  auto init = kernel::RaisedPriority::look(pod_->init(), init_priority, SCHED_RESET_ON_FORK);
  TRY(pod_->raising({told_of(PodPid{1}, init)}));
  raised_.emplace_back(HostPid{::gettid()}, daemon_priority);
  init.raise();
  raised_.push_back(std::move(init));
  TRY(workshop_->run([this]() -> Result<void> {
    raised_.emplace_back(HostPid{::gettid()}, daemon_priority);
    return {};
  }));
  for (const auto thread : pages_->threads()) raised_receivers_.emplace_back(thread, daemon_priority);
  return {};
}

/// All but the first thread of a process, which needs its privileges for what is still to be done in it.
Result<void> Arrival::tell_ahead(const wire::ProcessAhead& ahead) {
  for (const auto& thread : ahead.threads) said_[thread.tid.value] = thread.settings;
  Arriving* process = find(ahead.pid);
  if (process == nullptr || process->ended) return {};
  const auto each = [&](const auto& step) {
    for (const auto& said : ahead.threads) {
      const auto thread = std::ranges::find(process->threads, said.tid, &ArrivingThread::pod);
      if (thread == process->threads.end() || thread == process->threads.begin()) continue;
      if (auto done = step(*thread, said); !done)
        log::warn("{}: thread {}: {}", hello_.spec.name, said.tid.value, done.error().message());
    }
  };
  kernel::Relay relay(process->gadget);
  each([&](ArrivingThread& thread, const wire::ThreadAhead& said) -> Result<void> {
    if (thread.told) return {};
    // The kernel writes there at once.
    if (process->memory && process->memory->waits_for(said.settings.rseq)) return {};
    if (thread.timer_slack == 0) thread.timer_slack = TRY(kernel::timer_slack_of(thread.tracee.tid()));
    auto batch = TRY(relay.batch());
    TRY(objects::apply_settings(batch, thread.tracee, said.tid, said.settings));
    return relay.begin(thread.tracee, std::move(batch), [&](const kernel::Batch&) {
      thread.told = said.settings;
      return Result<void>{};
    });
  });
  if (const auto done = relay.finish(); !done)
    log::warn("{}: process {}: {}", hello_.spec.name, ahead.pid.value, done.error().message());
  // One that was told otherwise, or in part, has no privileges any more to be told anew: another takes its place.
  std::erase_if(process->threads, [&](ArrivingThread& thread) {
    const auto said = std::ranges::find(ahead.threads, thread.pod, &wire::ThreadAhead::tid);
    if (said == ahead.threads.end() || thread.pod == process->threads.front().pod || thread.told == said->settings)
      return false;
    objects::end_thread(process->gadget, thread.tracee, thread.told ? thread.told : said->settings);
    return true;
  });
  TRY(make_threads(*process));
  each([&](ArrivingThread& thread, const wire::ThreadAhead& said) -> Result<void> {
    if (!said.sleeps || !thread.told || thread.parked) return {};
    TRY(objects::park(process->gadget, thread.tracee));
    thread.parked = true;
    return {};
  });
  return {};
}

void Arrival::raise_threads() {
  for (auto& [pid, process] : processes_) {
    for (auto& thread : process.threads) {
      if (std::exchange(thread.raised, true)) continue;
      if (thread.timer_slack == 0) thread.timer_slack = kernel::timer_slack_of(thread.tracee.tid()).value_or(0);
      (void)kernel::set_policy(thread.tracee.tid(), {SCHED_FIFO, thread_priority});
    }
  }
}

// --- pages -----------------------------------------------------------------------------------------------------------

Result<void> Arrival::write(SpaceId space, std::uint64_t address, const void* data, std::size_t size) {
  constexpr std::uint64_t step = 32 * MiB;
  const std::uint64_t before = received_.fetch_add(size);
  if (before / step != (before + size) / step) site_.received(before + size);
  const std::shared_lock lock(spaces_mutex_);
  if (pager_ && (space & object_space) == 0) return pager_->put(space, address, data, size);
  if (complete_) return fail(ErrorKind::invalid, "pages of {:#x} that nobody owes", space);
  if ((space & object_space) != 0) return objects_.write(space, address, data, size);
  const auto process = processes_.find(static_cast<pid_t>(space));
  // A process that ended in this very round: its pages have nowhere to go.
  if (process == processes_.end() || !process->second.memory) return {};
  return process->second.memory->write(address, data, size);
}

Result<void> Arrival::apply_round(const wire::Round& round) {
  const std::unique_lock lock(spaces_mutex_);
  TRY(objects_.apply(round.objects, [this](const std::string& path, int flags) -> Result<Fd> {
    Fd file;
    TRY(workshop_->run([&]() -> Result<void> {
      if ((flags & O_CREAT) != 0) {
        file = TRY(objects::make_deleted_file(path));
        return {};
      }
      TRY(check_paths({path}, flags));
      file.reset(::open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC));
      if (!file) return fail_errno("open {} in the pod", path);
      return {};
    }));
    return file;
  }));
  // What has ended at the source ends here, children before parents.
  for (auto pid = order_.rbegin(); pid != order_.rend(); ++pid) {
    const auto still = std::ranges::find(round.processes, *pid, &wire::Process::pid);
    Arriving* process = find(*pid);
    if (process == nullptr) continue;
    if (still == round.processes.end() || still->zombie != process->ended) TRY(end_process(*process));
  }
  order_.clear();
  if (gadget_place_ == 0) {
    std::vector<const Layout*> layouts;
    for (const auto& process : round.processes) layouts.push_back(&process.layout);
    gadget_place_ = quiet_place(layouts, 1 * MiB);
  }
  const CheckFiles check_files = [this](const std::set<std::string>& paths) -> Result<void> {
    if (paths.empty()) return {};
    return workshop_->run([&] { return check_paths(paths, O_RDONLY); });
  };
  for (const auto& wanted : round.processes) {
    order_.push_back(wanted.pid);
    const bool known = find(wanted.pid) != nullptr;
    if (!known) {
      auto made = make_process(wanted);
      if (!made)
        return std::unexpected(std::move(made).error().within(fmt::format("make process {}", wanted.pid.value)));
    }
    Arriving& process = processes_.at(wanted.pid.value);
    const bool begin_anew = known && wanted.fresh;
    Layout before = std::move(process.wanted.layout);
    process.wanted = wanted;
    if (wanted.unchanged) process.wanted.layout = std::move(before);
    if (process.ended) continue;
    if (begin_anew) {
      // Whatever is registered of theirs goes with the memory.
      process.wanted.threads.clear();
      end_threads(process);
      process.wanted.threads = wanted.threads;
    }
    end_threads(process);
    if (begin_anew) process.memory = TRY(DestinationMemory::empty(process.host, wanted.pid, process.hand()));
    Result<void> applied;
    if (!known || begin_anew || !wanted.unchanged)
      applied = process.memory->apply(process.wanted.layout, objects_, builder_, process.hand(), check_files);
    if (applied) applied = make_threads(process);
    if (!applied)
      return std::unexpected(std::move(applied).error().within(fmt::format("lay out process {}", wanted.pid.value)));
  }
  return {};
}

Result<void> Arrival::follow_until_last() {
  for (;;) {
    auto message = TRY(next());
    switch (static_cast<wire::Type>(message.type)) {
      case wire::Type::clock:
        TRY(answer_clock());
        break;
      case wire::Type::round: {
        const auto round = TRY(image::unpack<wire::Round>(message.payload));
        TRY(check(round));
        TRY(apply_round(round));
        TRY(control_.send(wire::Type::ready, BytesView{}));
        TRY(pages_->wait(round.number, [this] { return control_.hung_up(); }));
        TRY(control_.send(wire::Type::done, BytesView{}));
        break;
      }
      case wire::Type::files: {
        const auto files = TRY(image::unpack<wire::Files>(message.payload));
        if (files.tree >= trees_.size()) return fail(ErrorKind::invalid, "files of an unknown tree");
        TRY(trees_[files.tree].apply(files.message));
        break;
      }
      case wire::Type::log:
        TRY(write_log(message));
        break;
      case wire::Type::objects_ahead:
        TRY(take_ahead(TRY(image::unpack<wire::ObjectsAhead>(message.payload)).images));
        break;
      case wire::Type::objects:
        images_ = TRY(image::unpack<wire::Objects>(message.payload)).images;
        for (const auto& image : images_) TRY(check(image.holders));
        break;
      case wire::Type::objects_kept:
        TRY(take_kept(TRY(image::unpack<wire::ObjectsKept>(message.payload)).kept));
        break;
      case wire::Type::freezing: {
        const auto freezing = TRY(image::unpack<wire::Freezing>(message.payload));
        TRY(check(freezing));
        TRY(expect_freeze(freezing));
        TRY(control_.send(wire::Type::ready, BytesView{}));
        break;
      }
      case wire::Type::last: {
        watch_.restart();
        last_ = TRY(image::unpack<wire::Last>(message.payload));
        TRY(check(last_));
        return apply_last(last_);
      }
      default:
        return fail(ErrorKind::invalid, "unexpected message {} while copying", message.type);
    }
  }
}

/// Of processes that are here and have memory of their own.
Result<void> Arrival::check_known(const std::vector<wire::Ranges>& all) {
  for (const auto& ranges : all) {
    const Arriving* process = find(ranges.process);
    if (process == nullptr || process->ended || !process->memory)
      return fail(ErrorKind::invalid, "the source tells of pages of process {}, which has none", ranges.process.value);
  }
  return {};
}

Result<void> Arrival::apply_last(const wire::Last& last) {
  TRY(apply_round(last.round));
  TRY(check_known(last.absent));
  TRY(check_known(last.owed));
  for (const auto& [pid, process] : processes_)
    if (process.memory) TRY(process.memory->check_kernel_pages(process.wanted.layout));
  raise_threads();
  // Processes have their final numbers: descriptors are built beside the last pages.
  TRY(begin_descriptors());
  for (const auto& ranges : last.absent) {
    Arriving* process = find(ranges.process);
    std::vector<Range> gone;
    for (std::size_t i = 0; i + 1 < ranges.edges.size(); i += 2) gone.push_back({ranges.edges[i], ranges.edges[i + 1]});
    const std::unique_lock lock(spaces_mutex_);
    TRY(process->memory->drop(gone, process->hand()));
  }
  watch_.lap("layout");
  TRY(PageReceiver::decode(last.pages, [this](SpaceId space, std::uint64_t address, const void* data,
                                              std::size_t size) { return write(space, address, data, size); }));
  if (last.more_pages) {
    TRY(control_.send(wire::Type::ready, BytesView{}));
    TRY(pages_->wait(last.round.number, [this] { return control_.hung_up(); }));
  }
  raised_receivers_.clear();
  watch_.lap("last pages");
  // From here on processes come and go, and what they hold is closed.
  const std::unique_lock lock(spaces_mutex_);
  complete_ = true;
  for (auto& [pid, process] : processes_) {
    const bool owed = std::ranges::find(last.owed, PodPid{pid}, &wire::Ranges::process) != last.owed.end();
    if (process.memory && !owed) process.memory->close();
  }
  return {};
}

Result<void> Arrival::begin_references(const wire::Last& last) {
  if (last.owed.empty()) return {};
  auto pager = TRY(Pager::make(*pod_, std::move(reference_)));
  for (auto& [pid, process] : processes_) {
    if (process.ended) continue;
    const auto owed = std::ranges::find(last.owed, PodPid{pid}, &wire::Ranges::process);
    if (owed == last.owed.end()) continue;
    PageSet pages;
    std::vector<Range> stale;
    for (std::size_t i = 0; i + 1 < owed->edges.size(); i += 2) {
      const Range range{owed->edges[i], owed->edges[i + 1]};
      pages.add(range);
      for (const auto& run : process.memory->present().runs(range)) stale.push_back(run);
    }
    TRY(process.memory->drop(stale, process.hand()));
    auto fault = TRY(DestinationMemory::make_userfaultfd(process.host, Pager::features, process.hand()));
    fault = TRY(process.memory->begin_reference(std::move(fault)));
    TRY(pager->add(static_cast<SpaceId>(pid), std::move(fault), std::move(pages)));
  }
  for (const auto thread : pages_->threads()) kernel::work_in_background(thread);
  const std::unique_lock lock(spaces_mutex_);
  pager_ = std::move(pager);
  {
    const std::scoped_lock rebuilding(rebuilding_mutex_);
    rebuilding_ = true;
  }
  // Rebuilding touches memory too: faults are served from here on.
  return pager_->begin([this](const Error& why) { return starve(why); });
}

/// A step in a process that waits for a page would wait for ever: the processes end, and the step with them. Once they
/// are whole nothing of ours waits in them any more.
bool Arrival::starve(const Error& why) {
  const std::scoped_lock lock(rebuilding_mutex_);
  if (!std::exchange(rebuilding_, false)) return false;
  starved_ = why;
  return pod_->workload().kill().has_value();
}

Result<void> Arrival::end_rebuilding() {
  const std::scoped_lock lock(rebuilding_mutex_);
  rebuilding_ = false;
  if (starved_) return std::unexpected(Error(*starved_).within("pages that are needed now"));
  return {};
}

}  // namespace godwit::migrate
