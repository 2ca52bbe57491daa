#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <thread>

#include "base/both.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "kernel/gadget_x86_64.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "migrate/arrival.hpp"
#include "migrate/limits.hpp"
#include "migrate/recover.hpp"
#include "objects/memory_object.hpp"
#include "objects/process_state.hpp"
#include "pod/directory.hpp"
#include "pod/log_segments.hpp"

/// The freeze at the destination: from the last pages to the restart.
namespace godwit::migrate {

namespace {
/// struct kernel_sigaction that ignores: handler, flags, restorer, mask.
constexpr std::array<std::uint64_t, 4> ignore_signal{1, 0, 0, 0};

/// Ends the first thread of a process whose others live on. It stays a zombie that nobody can wait for before they have
/// ended, too: it must not be ours then, or its parent would never be told.
Result<void> end_leader(ArrivingThread& thread, const std::string& name, kernel::Gadget& gadget) {
  constexpr auto limit = std::chrono::seconds(2);
  constexpr int no_priority = 0;
  kernel::Tracee& leader = thread.tracee;
  const HostPid tid = leader.tid();
  // What is still to be seen of it.
  auto batch = gadget.batch();
  batch.call(SYS_sched_setscheduler, {0, SCHED_OTHER, batch.value(no_priority)});
  batch.call(SYS_prctl, {PR_SET_TIMERSLACK, thread.timer_slack});
  batch.call(SYS_prctl, {PR_SET_NAME, batch.text(name)});
  TRY(gadget.run(leader, batch));
  TRY(leader.set_signal_mask(~0ULL));
  TRY(leader.set_registers(kernel::gadget::at_call(TRY(leader.registers()),
                                                   gadget.begin() + kernel::gadget::syscall_offset(), SYS_exit, {0})));
  TRY(leader.detach());
  // The gadget stays until it has gone through.
  for (const auto give_up = std::chrono::steady_clock::now() + limit;;) {
    const auto status = TRY(kernel::read_status(tid));
    if (status.state == 'Z') return {};
    if (std::chrono::steady_clock::now() > give_up) return fail(ErrorKind::timeout, "thread {} doesn't end", tid.value);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}
}  // namespace

Result<void> Arrival::rebuild() {
  auto rebuilt = rebuild_all();
  TRY(end_rebuilding());
  return rebuilt;
}

Result<void> Arrival::rebuild_all() {
  // Until the state comes, the processes do what the build of the descriptors wants done by them.
  serve([this] { return control_.readable(); });
  auto message = TRY(next(std::chrono::seconds(60)));
  if (static_cast<wire::Type>(message.type) != wire::Type::state)
    return fail(ErrorKind::invalid, "expected the state, got message {}", message.type);
  state_ = TRY(image::unpack<wire::State>(message.payload));
  TRY(check(state_));
  // First: whatever runs in a process touches its memory, where the kernel has something registered.
  TRY(begin_references(last_));
  TRY(match_said());
  TRY(check_complete());
  TRY(make_groups());
  watch_.lap("threads");

  serve([] { return false; });
  TRY(workshop_->wait());
  for (const auto& image : state_.processes) descriptors_->set_close_on_exec(image.process.pid, image.close_on_exec);
  watch_.lap("objects");
  workshop_->begin([this]() -> Result<void> {
    TRY(check_places());
    return pod_->set_last_pid(state_.last_pid);
  });

  for (const auto& image : state_.processes) {
    auto restored = restore_process(image, highest_number_ + 1);
    if (!restored)
      return std::unexpected(
          std::move(restored).error().within(fmt::format("rebuild process {}", image.process.pid.value)));
  }
  TRY(workshop_->wait());
  watch_.lap("processes");
  return {};
}

/// What was said ahead of the freeze holds unless it is said again. A thread for which it doesn't is made anew: it has
/// no privileges any more to be told otherwise.
Result<void> Arrival::match_said() {
  for (auto& image : state_.processes) {
    Arriving* process = find(image.process.pid);
    if (process == nullptr) continue;
    bool anew = false;
    for (auto& state : image.threads) {
      if (!state.settings) {
        const auto said = said_.find(state.tid.value);
        if (said == said_.end())
          return fail(ErrorKind::invalid, "thread {} comes without its settings", state.tid.value);
        state.settings = said->second;
      } else {
        TRY(check_rights(state.tid, *state.settings));
      }
      const auto thread = std::ranges::find(process->threads, state.tid, &ArrivingThread::pod);
      if (thread != process->threads.end() && thread->told && *thread->told != *state.settings) {
        objects::end_thread(process->gadget, thread->tracee, thread->told);
        process->threads.erase(thread);
        anew = true;
      }
    }
    if (anew) TRY(make_threads(*process));
  }
  raise_threads();
  return {};
}

/// Who isn't given credentials would keep those that it was made with, which are root's.
Result<void> Arrival::check_complete() const {
  for (const auto pid : order_) {
    const Arriving& process = processes_.at(pid.value);
    if (process.ended) continue;
    const auto image = std::ranges::find(state_.processes, pid, [](const auto& each) { return each.process.pid; });
    if (image == state_.processes.end()) return fail(ErrorKind::invalid, "process {} comes without a state", pid.value);
    std::set<PodPid> told;
    for (const auto& thread : image->threads)
      if (!told.insert(thread.tid).second)
        return fail(ErrorKind::invalid, "thread {} comes with two states", thread.tid.value);
    for (const auto& thread : process.threads) {
      const bool ends = process.wanted.leader_exited && &thread == &process.threads.front();
      if (!ends && !told.contains(thread.pod))
        return fail(ErrorKind::invalid, "thread {} comes without a state", thread.pod.value);
    }
  }
  return {};
}

/// The stubs, which may go anywhere, take programs and working directories by name: their user must be able to.
Result<void> Arrival::check_places() const {
  std::set<std::string> programs, directories;
  for (const auto& image : state_.processes) {
    programs.insert(image.process.exe);
    directories.insert({image.process.cwd, image.process.root});
  }
  TRY(check_paths(programs, O_RDONLY));
  return check_paths(directories, O_PATH);
}

void Arrival::serve(const std::function<bool()>& until) {
  if (!descriptors_) return;
  (void)descriptors_->serve(until, [this](PodPid pid) -> std::optional<Hand> {
    Arriving* process = find(pid);
    if (process == nullptr || process->ended || process->threads.empty()) return std::nullopt;
    return process->hand();
  });
}

/// Built beside what else is copied while the pod runs.
Result<void> Arrival::take_ahead(std::vector<objects::AheadImage> images) {
  for (const auto& image : images) TRY(check(image.holders));
  workshop_->begin([this, images = std::move(images)] { return descriptors_->build_ahead(images); });
  return {};
}

Result<void> Arrival::take_kept(std::vector<objects::Kept> kept) {
  // Those of a freeze that was put off have been dealt with.
  TRY(workshop_->wait());
  for (const auto& each : kept) TRY(check(each.holders));
  kept_ = std::move(kept);
  workshop_->begin([this] { return descriptors_->finish_ahead(kept_); });
  return {};
}

/// Everything that was sent ahead is built by now.
Result<void> Arrival::install_ahead() {
  for (const auto pid : order_) {
    Arriving& process = processes_.at(pid.value);
    if (process.ended || process.wanted.shares_files) continue;
    TRY(descriptors_->install_ahead(pid, builder_, process.hand()));
  }
  return {};
}

Result<void> Arrival::begin_descriptors() {
  std::map<pid_t, HostPid> hosts;
  for (const auto& [pid, process] : processes_) hosts[pid] = process.host;
  highest_number_ = descriptors_->highest_number(images_, kept_);
  descriptors_->know(std::move(hosts));
  TRY(objects_.share(*shared_objects_));
  workshop_->begin([this] { return descriptors_->build(std::move(images_), kept_); });
  return {};
}

Result<void> Arrival::restore_process(const wire::ProcessImage& image, int builder) {
  Arriving* process = find(image.process.pid);
  if (process == nullptr || process->ended) return fail(ErrorKind::invalid, "it has a state but was not made");
  auto hand = process->hand();
  objects::ProcessRestore restore(image.process, clock_);

  auto batch = hand.gadget.batch();
  // What our own making and ending of children has queued is not the program's.
  batch.call(SYS_rt_sigaction, {SIGCHLD, batch.value(ignore_signal), 0, 8});
  restore.early(batch);
  // A table that is the parent's is complete, and has no builder's descriptor any more.
  const bool own_table = !process->wanted.shares_files;
  if (own_table) {
    batch.must("move the builder's descriptor", SYS_dup3,
               {static_cast<std::uint64_t>(builder_), static_cast<std::uint64_t>(builder), O_CLOEXEC});
    batch.must("move the builder's descriptor", SYS_close, {static_cast<std::uint64_t>(builder_)});
  }
  if (std::ranges::any_of(process->wanted.layout,
                          [](const Area& area) { return area.flags.find("lo") != std::string::npos; })) {
    TRY(hand.run(batch));
    TRY(process->memory->lock(hand));
    batch = hand.gadget.batch();
  }
  if (own_table) TRY(descriptors_->install(image.process.pid, builder, batch, hand));
  TRY(descriptors_->attach(image.process.pid, batch, hand));
  if (batch.full(400, 64 * KiB)) {
    TRY(hand.run(batch));
    batch = hand.gadget.batch();
  }
  restore.late(batch, builder + 1);
  if (own_table) batch.must("close the builder's descriptor", SYS_close, {static_cast<std::uint64_t>(builder)});
  return restore_threads(image, *process, restore, std::move(batch));
}

Result<void> Arrival::restore_threads(const wire::ProcessImage& image, Arriving& process,
                                      objects::ProcessRestore& whole, kernel::Batch batch) {
  const std::size_t begin = restores_.size();
  std::vector<kernel::Tracee*> threads;
  std::vector<std::uint64_t> slack;
  std::vector<bool> told;
  for (const auto& state : image.threads) {
    const auto thread = std::ranges::find(process.threads, state.tid, &ArrivingThread::pod);
    if (thread == process.threads.end()) return fail(ErrorKind::invalid, "its thread {} was not made", state.tid.value);
    threads.push_back(&thread->tracee);
    slack.push_back(thread->timer_slack);
    told.push_back(thread->told.has_value());
    // A batch that is still to run in it takes it from where it is parked.
    const bool parked = thread->parked && &state != &image.threads.front() && state.pending.empty();
    if (thread->parked && !parked) {
      auto away = process.gadget.batch();
      away.call(SYS_getpid);
      TRY(process.gadget.run(thread->tracee, away));
    }
    restores_.push_back({objects::ThreadRestore(state, told.back(), parked), thread->tracee.tid()});
  }
  const auto prepare = [&](std::size_t i, kernel::Batch& batch) -> Result<void> {
    auto& restore = restores_[begin + i].restore;
    if (!told[i]) restore.tell(batch);
    if (!told[i]) TRY(restore.credentials(batch, threads[i]->tid()));
    if (i == 0) whole.last(batch);
    return {};
  };
  if (threads.size() > 1 || threads.front() != &process.threads.front().tracee) {
    TRY(process.gadget.run(process.threads.front().tracee, batch));
    kernel::Relay relay(process.gadget);
    for (std::size_t i = 1; i < threads.size(); ++i) {
      if (told[i]) continue;
      auto own = TRY(relay.batch());
      TRY(prepare(i, own));
      TRY(relay.begin(*threads[i], std::move(own)));
    }
    TRY(relay.finish());
    batch = process.gadget.batch();
  }
  // The first thread goes last: with it goes what only all of them allow.
  TRY(prepare(0, batch));
  const auto requeue = [&](std::size_t i, const std::vector<Bytes>& signals,
                           std::optional<PodPid> thread) -> Result<void> {
    for (std::size_t at = 0; at < signals.size();) {
      at = TRY(objects::requeue_signals(batch, signals, at, image.process.pid, thread, image.process.timers));
      if (at == signals.size() && i == 0) break;
      TRY(process.gadget.run(*threads[i], batch));
      batch = process.gadget.batch();
    }
    return {};
  };
  TRY(requeue(0, image.threads[0].pending, image.threads[0].tid));
  TRY(requeue(0, image.process.pending, {}));
  TRY(process.gadget.run(*threads[0], batch));
  batch = process.gadget.batch();
  for (std::size_t i = 1; i < threads.size(); ++i) TRY(requeue(i, image.threads[i].pending, image.threads[i].tid));
  std::vector<objects::ThreadRestore*> restores;
  for (std::size_t i = 0; i < threads.size(); ++i) restores.push_back(&restores_[begin + i].restore);
  TRY(objects::ThreadRestore::rearm(process.gadget, restores, threads, clock_));
  if (process.wanted.leader_exited) TRY(end_leader(process.threads.front(), process.wanted.name, process.gadget));
  TRY(process.gadget.remove(*threads.front()));
  for (std::size_t i = 0; i < threads.size(); ++i) TRY(restores_[begin + i].restore.settle(*threads[i], slack[i]));
  // Through a thread that lives: of a first one that has exited, little is left to see.
  return whole.outside(threads.front()->tid());
}

Result<void> Arrival::pin() {
  // Stopped as they are, the freezer holds them too: were we to die, they would not run.
  TRY(pod_->workload().freeze());
  watch_.lap("pin");
  TRY(await_streams());
  watch_.lap("streams");
  // From the next message on it may be ours without our hearing of it: its init and its gate must outlive us. Until the
  // store says whose it is it stays frozen.
  TRY(pod_->deposit_gate());
  TRY(pod_->keep());
  TRY(pod_->connect());
  watch_.lap("keep");
  // Whether it was heard can't be told: if it was, the source may have committed. Whoever waits for its answer finds
  // out.
  (void)control_.send(wire::Type::rebuilt, wire::Spans{watch_.spans()});
  fault::reach("destination.pinned");
  // While the source commits, from the tracer to the freezer alone. Nothing here may end the move any more: it may be
  // ours already.
  const auto note = [&](const Result<void>& outcome) {
    if (!outcome) log::error("{}: {}", hello_.spec.name, outcome.error().message());
  };
  for (auto& [pid, process] : processes_)
    for (auto& thread : process.threads) note(thread.tracee.detach());
  // What job control had stopped is stopped again before its first instruction.
  for (const auto& image : state_.processes) {
    if (!image.stopped) continue;
    const auto pidfd = kernel::pidfd_open(processes_.at(image.process.pid.value).host);
    note(pidfd ? kernel::pidfd_send_signal(pidfd->get(), SIGSTOP) : std::unexpected(pidfd.error()));
  }
  return {};
}

Result<void> Arrival::write_log(const Message& message) {
  const auto part = TRY(image::unpack<wire::Log>(message.payload));
  if (!pod::is_log_segment(part.segment)) return fail(ErrorKind::invalid, "bad log segment name");
  const std::string path = pod_->log_directory() + "/" + part.segment;
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!file) return fail_errno("open {}", path);
  for (std::size_t done = 0; done < part.content.size();) {
    const ssize_t wrote = ::pwrite(file.get(), part.content.data() + done, part.content.size() - done,
                                   static_cast<off_t>(part.at + done));
    if (wrote < 0) return fail_errno("write {}", path);
    done += static_cast<std::size_t>(wrote);
  }
  return {};
}

Result<void> Arrival::await_streams() {
  for (;;) {
    const auto message = TRY(next(std::chrono::seconds(30)));
    switch (static_cast<wire::Type>(message.type)) {
      case wire::Type::log:
        TRY(write_log(message));
        continue;
      case wire::Type::execution: {
        const auto execution = TRY(image::unpack<pod::Execution>(message.payload));
        TRY(check(execution));
        TRY(pod_->restore(execution));
        continue;
      }
      case wire::Type::streams_end:
        if (TRY(image::unpack<wire::StreamsEnd>(message.payload)).input_ended) TRY(pod_->forget("stdin-writer"));
        return {};
      default:
        return fail(ErrorKind::invalid, "expected the pod's streams, got message {}", message.type);
    }
  }
}

Result<void> Arrival::await_commit() {
  control::Claim claim({control::Claim::Role::destination, site_.site.node, hello_.from, owner_of(prepare_.record)});
  auto message = control_.receive(std::chrono::seconds(60));
  control::Claim::Event heard = control::Claim::Doubt{};
  std::string why = message ? "" : message.error().message();
  // What can't be understood tells nothing: the store does.
  if (message && static_cast<wire::Type>(message->type) == wire::Type::abort) {
    const auto said = image::unpack<wire::Text>(message->payload);
    why = said ? shown(said->text) : said.error().message();
    if (said) heard = control::Claim::Told{.committed = false};
  } else if (message && static_cast<wire::Type>(message->type) == wire::Type::go) {
    auto go = image::unpack<wire::Go>(message->payload);
    if (go) held_ = std::move(go->frames);
    if (go) heard = control::Claim::Told{.committed = true};
    // Before it runs: to the next daemon the record says that it isn't ours, as long as nobody has told it.
    if (const auto written = go && go->by_word ? pod::write_word(pod_->directory(), true) : Result<void>{}; !written)
      log::error("{}: {}", hello_.spec.name, written.error().message());
  } else if (message) {
    why = fmt::format("expected the go, got message {}", message->type);
  }
  const auto fate = carry_out(claim, heard, prepare_.record, site_.store, site_.in_doubt);
  undecided_ = !fate;
  if (!fate) return fail(ErrorKind::busy, "{} is in doubt, and left so", hello_.spec.name);
  if (*fate != control::Fate::here) return fail(ErrorKind::cancelled, "{} gave up: {}", hello_.from, why);
  fault::reach("destination.committed");
  watch_.restart();
  return {};
}

Result<void> Arrival::restart() {
  // This is the only copy. Nothing below may keep it from running.
  const auto note = [&](const char* what, const Result<void>& outcome) {
    if (!outcome) log::error("{}: {}: {}", hello_.spec.name, what, outcome.error().message());
  };
  note("open the gate", pod_->gate().set(pod::Gate::State::pause));
  // What is sent to the pod once it is announced comes here, and waits at the gate behind what the source has held:
  // nothing more goes astray.
  const auto announce = [&]() -> Result<void> {
    note("announce", pod_->announce());
    return {};
  };
  const auto run = [&]() -> Result<void> {
    note("open", workshop_->run([&] { return descriptors_->open(); }));
    watch_.lap("open");
    note("thaw", pod_->workload().thaw());
    for (const auto& frame : held_) note("deliver a held frame", pod_->gate().deliver(frame));
    auto released = pod_->gate().release();
    if (!released) note("release the gate", std::unexpected(released.error()));
    raised_.clear();
    watch_.lap("thaw");
    return {};
  };
  TRY(both(announce, run));
  watch_.lap("announce");
  const auto at = now_ns();
  site_.arrived(pod_);
  (void)control_.send(wire::Type::running, wire::Running{at, watch_.spans()});
  site_.use([&](pod::Pod& pod) {
    note("forget what was raised", pod.raising({}));
    note("forget the gate", pod.forget_gate());
  });
  return {};
}

}  // namespace godwit::migrate
