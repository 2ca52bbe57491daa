#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/caught.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "migrate/departure.hpp"
#include "migrate/limits.hpp"
#include "migrate/recover.hpp"
#include "migrate/tracking.hpp"
#include "objects/memory_object.hpp"
#include "pod/network.hpp"

/// The freeze at the source: from the first thread stopped to the commit.
namespace godwit::migrate {

namespace {

/// So few bytes travel with the control message; more are worth the page connections, and a question whether the
/// layouts stand.
constexpr std::uint64_t inline_bytes = 128 * KiB;

const Area* area_at(const Layout& layout, std::uint64_t address) {
  auto after = std::ranges::upper_bound(layout, address, {}, &Area::begin);
  return after == layout.begin() || std::prev(after)->end <= address ? nullptr : &*std::prev(after);
}

/// The pages of a process's arguments and environment. A look into /proc at one that is owed doesn't wait for it: it
/// finds nothing.
Range shown_in_proc(HostPid process) {
  const auto stat = kernel::read_stat(process);
  if (!stat || stat->arg_start == 0) return {};
  return {std::min(stat->arg_start, stat->env_start) & ~(page_size - 1),
          (std::max(stat->arg_end, stat->env_end) + page_size - 1) & ~(page_size - 1)};
}

void append(std::vector<wire::Ranges>& list, PodPid process, Range range) {
  auto entry = std::ranges::find(list, process, &wire::Ranges::process);
  if (entry == list.end()) entry = list.insert(entry, {process, {}});
  auto& edges = entry->edges;
  if (!edges.empty() && edges.back() == range.begin) {
    edges.back() = range.end;
    return;
  }
  edges.push_back(range.begin);
  edges.push_back(range.end);
}

}  // namespace

void Departure::be_patient(std::chrono::seconds bound) {
  control_->be_patient(bound);
  pages_->be_patient(bound);
}

/// Nothing is frozen for a commit that can't be had. What it takes is there from here on: a connection to the store,
/// say.
Result<void> Departure::look_at_record() {
  const auto record = TRY(site_.store.get(report_.pod));
  if (record && record->id == record_.id && record->owner == record_.owner && record->epoch == record_.epoch) return {};
  return fail(ErrorKind::gone, "{} belongs to {} by now", report_.pod, record ? "node " + record->owner : "nobody");
}

Result<void> Departure::freeze() {
  tell("freeze");
  TRY(look_at_record());
  // Until the commit the pod can go on here any time: it doesn't wait for a link that is gone.
  be_patient(freeze_patience);
  constexpr int tries = 40;
  for (int attempt = 1;; ++attempt) {
    TRY(check_cancelled());
    auto captured = freeze_once();
    if (captured) return {};
    if (captured.error().kind != ErrorKind::busy || attempt == tries) return captured;
    // A connection that nobody has accepted yet, say: the pod runs on for a moment and gets it done.
    let_go();
    std::this_thread::sleep_for(std::chrono::milliseconds(attempt));
  }
}

Result<void> Departure::freeze_once() {
  Known known{.processes = {}, .last_pid = TRY(pod_.last_pid())};
  known.processes = TRY(read_tree(pod_.init()));
  TRY(control_->send(wire::Type::freezing, wire::Freezing{first_, tell_ahead(known), TRY(pod_.port().neighbours())}));
  TRY(expect(wire::Type::ready));
  if (const auto last = TRY(pod_.last_pid()); last != known.last_pid) {
    known.last_pid = last;
    known.processes = TRY(read_tree(pod_.init()));
  }
  objects::SleepClock sleep_clock(clock_);
  for (const auto& process : known.processes)
    for (const auto& thread : process.threads)
      if (auto sleeping = sleep_clock.mark(thread.host)) marks_[thread.host.value] = *sleeping;
  raise_priorities(known);
  const FreezeHooks hooks{
      .last_pid = [this]() -> Result<PodPid> { return last_pid_ = TRY(pod_.last_pid()); },
      .begin = [this]() -> Result<void> {
        fault::reach("source.stopping");
        freeze_watch_.restart();
        // What the threads and the kernel still answer goes out until they have stopped.
        TRY(pod_.gate().set(pod::Gate::State::pause));
        holding_ = true;
        return {};
      },
      .asked =
          [this](HostPid thread) {
            if (const auto raised = raised_threads_.find(thread.value); raised != raised_threads_.end())
              raised->second.raise();
          },
  };
  frozen_ = TRY(freeze_all(pod_.init(), known, hooks, std::chrono::seconds(5), stopped_at_));
  // From here nothing may be acknowledged that the image doesn't have.
  TRY(pod_.gate().set(pod::Gate::State::hold));
  freeze_watch_.lap("stop threads");
  TRY(match_frozen());
  std::vector<ProcessIds> ids;
  for (const auto& process : frozen_) ids.push_back(process.ids);
  descriptors_ = TRY(SourceDescriptors::open(facts_, ids));
  auto& carried = descriptors_->shared<objects::MemoryObjectKeys>("memory-objects").keys;
  for (const auto& object : objects_.infos())
    carried.insert(object.descriptor_key != 0 ? object.descriptor_key : object.key);
  freeze_watch_.lap("duplicate descriptors");
  // The destination brings them up to date while all others are captured.
  if (!ahead_.empty())
    TRY(control_->send(wire::Type::objects_kept, wire::ObjectsKept{TRY(descriptors_->keep(ahead_))}));
  freeze_watch_.lap("connections");
  images_ = TRY(descriptors_->capture());
  freeze_watch_.lap("capture objects");
  return {};
}

/// What the threads have now, read from outside while they run. Only where all memory has been copied: some of it is
/// registered with the kernel, which writes there.
std::vector<wire::ProcessAhead> Departure::tell_ahead(const Known& known) {
  told_.clear();
  if (auto tasks = kernel::TaskReader::open(); !tasks_ && tasks) tasks_ = std::move(*tasks);
  std::vector<HostPid> threads;
  for (const auto& process : known.processes)
    for (const auto& thread : process.threads) threads.push_back(thread.host);
  const auto facts = read_tasks(threads);
  std::vector<wire::ProcessAhead> ahead;
  if (ending_ != Next::freeze || !copies_before(strategy_)) return ahead;
  for (const auto& process : known.processes) {
    wire::ProcessAhead& said = ahead.emplace_back(process.pod);
    for (const auto& thread : process.threads) {
      const auto found = facts.find(thread.host.value);
      auto scheduling = objects::scheduling_of(thread.host);
      if (found == facts.end() || !scheduling) continue;
      auto& told = told_[thread.host.value] = objects::settings_of(found->second, std::move(*scheduling));
      said.threads.push_back({thread.pod, told, objects::sleeps_with_block(thread.host)});
    }
  }
  return ahead;
}

/// Nothing of ours has run in any thread yet: they go on, and what came in meanwhile is delivered.
void Departure::let_go() {
  descriptors_.reset();
  if (!frozen_.empty()) report_.pauses_us.push_back(static_cast<std::uint64_t>(now_ns() - stopped_at_) / 1000);
  let_down();
  thaw_all(frozen_);
  if (!holding_) return;
  auto released = pod_.gate().release();
  if (!released) log::error("{}: the network stays held: {}", report_.pod, released.error().message());
  holding_ = false;
}

void Departure::raise_priorities(const Known& known) {
  std::vector<pod::RaisedThread> told;
  const auto look = [&](PodPid inside, HostPid thread, int priority) {
    auto found = kernel::RaisedPriority::look(thread, priority, SCHED_RESET_ON_FORK);
    if (found.can_be_raised()) told.push_back(told_of(inside, found));
    return found;
  };
  for (const auto& process : known.processes) {
    for (const auto& thread : process.threads) {
      if (auto scheduling = objects::scheduling_of(thread.host)) scheduling_[thread.host.value] = *scheduling;
      auto& raised = raised_threads_[thread.host.value];
      raised = look(thread.pod, thread.host, thread_priority);
      if (raised.can_be_raised()) slack_[thread.host.value] = raised.before().timer_slack;
    }
  }
  auto init = look(PodPid{1}, pod_.init(), init_priority);
  if (auto known_to_init = pod_.raising(std::move(told)); !known_to_init) {
    log::warn("{}: nothing is raised for its freeze, which takes longer: {}", report_.pod,
              known_to_init.error().message());
    raised_threads_.clear();
    return;
  }
  raised_.emplace_back(HostPid{::gettid()}, daemon_priority);
  init.raise();
  raised_.push_back(std::move(init));
}

/// Threads of the pod are as the program wants them again, before they run.
void Departure::let_down() {
  raised_threads_.clear();
  raised_.clear();
}

Result<void> Departure::send_last_files() {
  TRY(send_files());
  freeze_watch_.lap("files");
  return {};
}

bool Departure::shares_memory(const ProcessIds& process) const {
  return std::ranges::any_of(frozen_, [&](const FrozenProcess& other) {
    return other.ids.pod == process.parent &&
           ::syscall(SYS_kcmp, other.ids.host.value, process.host.value, KCMP_VM, 0, 0) == 0;
  });
}

Result<void> Departure::match_frozen() {
  order_.clear();
  std::map<pid_t, Leaving> now;
  for (auto& process : frozen_) {
    const auto host = process.ids.host.value;
    order_.push_back(host);
    auto known = processes_.extract(host);
    Leaving leaving;
    if (!known.empty()) leaving = std::move(known.mapped());
    leaving.ids = process.ids;
    leaving.ids.threads.clear();
    for (const auto& thread : process.threads) leaving.ids.threads.push_back(thread.ids);
    leaving.ids.zombie = process.threads.empty();
    process.ids = leaving.ids;
    if (leaving.ids.zombie) {
      leaving.memory.reset();
    } else if (shares_memory(process.ids)) {
      return fail(ErrorKind::refused, "process {} shares its memory with process {} (CLONE_VM)", process.ids.pod.value,
                  process.ids.parent.value);
    } else if (!leaving.memory) {
      leaving.memory = TRY(SourceMemory::open(process.ids.body(), process.ids.pod));
      leaving.fresh = true;
    }
    now.emplace(host, std::move(leaving));
  }
  processes_ = std::move(now);
  return {};
}

Result<void> Departure::look_last() {
  objects_.begin_look();
  for (const auto host : order_) {
    Leaving& leaving = processes_.at(host);
    if (!leaving.memory) continue;
    const auto hidden =
        leaving.gadget ? Range{leaving.gadget.begin(), leaving.gadget.begin() + leaving.gadget.size()} : Range{};
    TRY(leaving.memory->look(objects_, false, hidden.begin, hidden.end));
    if ((hidden.size() != 0 && !leaving.memory->maps(hidden.begin)) || !leaving.memory->alive()) {
      // It has executed another program since the last round: nothing that was sent counts.
      leaving.memory = TRY(SourceMemory::open(leaving.ids.body(), leaving.ids.pod));
      leaving.gadget = {};
      leaving.fresh = true;
      TRY(leaving.memory->look(objects_, false, 0, 0));
    }
  }
  return {};
}

/// What is collected in the freeze: the pages to be sent now. The others are owed.
Result<std::vector<Piece>> Departure::collect_last(wire::Last& last) {
  const bool on_reference = ending_ == Next::reference && strategy_ != Strategy::eager_dirty;
  std::vector<Piece> pieces, now, unseen;
  const auto collect_one = [&](Leaving& leaving, std::vector<Piece>& found) -> Result<void> {
    std::vector<Range> absent, dense;
    TRY(leaving.memory->collect_last(objects_, found, absent, on_reference ? &dense : nullptr));
    for (const auto& range : absent) append(last.absent, leaving.ids.pod, range);
    for (const auto& range : dense) unseen.push_back({leaving.memory->space(), range});
    return {};
  };
  // Where all pages go now, what processes share with their children goes before those are made.
  constexpr int most_generations = 16;
  for (int generation = 1;; ++generation) {
    find_forks(!on_reference && generation < most_generations);
    pieces.clear();
    TRY(collect(pieces, collect_one));
    if (!any(&Leaving::waits)) break;
    TRY(send_ahead(pieces));
  }
  if (!on_reference) return pieces;
  std::map<SpaceId, std::pair<const Leaving*, Range>> spaces;
  for (const auto host : order_) {
    const Leaving& leaving = processes_.at(host);
    if (leaving.memory) spaces[leaving.memory->space()] = {&leaving, shown_in_proc(leaving.ids.body())};
  }
  const auto owe = [&](const Piece& piece, std::vector<Piece>& owed_here) {
    const auto& [leaving, shown] = spaces.at(piece.space);
    const Range at_once{std::clamp(shown.begin, piece.range.begin, piece.range.end),
                        std::clamp(shown.end, piece.range.begin, piece.range.end)};
    if (at_once.size() > 0) now.push_back({piece.space, at_once});
    for (const Range& owed : {Range{piece.range.begin, at_once.begin}, Range{at_once.end, piece.range.end}}) {
      if (owed.size() == 0) continue;
      append(last.owed, leaving->ids.pod, owed);
      owed_here.push_back({piece.space, owed});
    }
  };
  for (const auto& piece : pieces) {
    const Area* area = area_at(spaces.at(piece.space).first->memory->layout(), piece.range.begin);
    // Locked memory never has to be waited for.
    if (area == nullptr || area->backing != Backing::anonymous || locked(*area))
      now.push_back(piece);
    else
      owe(piece, owed_);
  }
  for (const auto& piece : unseen) owe(piece, owed_unseen_);
  return now;
}

Result<void> Departure::send_last_pages() {
  wire::Last last;
  TRY(look_last());
  auto now = TRY(collect_last(last));
  TRY(objects_.collect(now));
  freeze_watch_.lap("final scan");
  std::uint64_t bytes = 0;
  for (const auto& piece : now) bytes += piece.range.size();
  last.more_pages = bytes > inline_bytes;
  last.round = {.number = round_ + 1, .processes = TRY(describe_processes()), .objects = objects_.infos()};
  if (owes()) begin_answering();
  if (!last.more_pages) {
    const Stopwatch watch;
    const Sent sent = PageSender::encode(
        now, [this](SpaceId space, std::span<const Range> ranges, std::uint8_t* to) { return read(space, ranges, to); },
        last.pages);
    last_sent_ = Round{sent.pages, sent.zero_pages, sent.bytes, watch.total_us()};
  }
  TRY(control_->send(wire::Type::last, last));
  if (last.more_pages) {
    TRY(expect(wire::Type::ready, step_limit));
    // Beside what is still to be captured.
    sending_ = std::jthread([this, number = last.round.number, pieces = std::move(now)] {
      last_sent_ = caught([&]() -> Result<Round> {
        const Stopwatch watch;
        const Sent sent = TRY(pages_->send(pieces));
        TRY(pages_->end_round(number));
        return Round{sent.pages, sent.zero_pages, sent.bytes, watch.total_us()};
      });
    });
  }
  freeze_watch_.lap("last pages");
  return {};
}

Result<void> Departure::finish_last_pages() {
  if (sending_.joinable()) sending_.join();
  const Round sent = TRY(last_sent_);
  report_.rounds.push_back(sent);
  report_.bytes_sent += sent.bytes;
  return {};
}

Result<wire::ProcessImage> Departure::capture_process(FrozenProcess& frozen, Leaving& leaving) {
  wire::ProcessImage image;
  auto& first = frozen.threads.front().tracee;
  objects::ProcessCapture process;
  TRY(process.look(frozen.ids.host, first, frozen.ids.status));
  if (!leaving.gadget) leaving.gadget = TRY(kernel::Gadget::install(first));
  const auto& numbers = descriptors_->numbers(leaving.ids.pod);
  std::vector<kernel::Batch::Call> flags;
  const bool own_sets = !leaving.same_capabilities;
  image.threads.resize(frozen.threads.size());
  kernel::Relay relay(leaving.gadget);
  for (std::size_t i = 0; i < frozen.threads.size(); ++i) {
    FrozenThread& thread = frozen.threads[i];
    const HostPid tid = thread.ids.host;
    const auto before = scheduling_.find(tid.value);
    const auto scheduling = before != scheduling_.end() ? before->second : TRY(objects::scheduling_of(tid));
    auto& capture =
        in_hand_
            .emplace_back(&thread.tracee, tid, frozen.ids.host.value, objects::ThreadCapture(thread.ids.pod, own_sets))
            .capture;
    const auto facts = facts_of_.find(tid.value);
    TRY(capture.look(thread.tracee, marks_[tid.value], clock_, scheduling,
                     facts == facts_of_.end() ? nullptr : &facts->second));
    const auto keep = [&, i, tid](objects::ThreadState state) {
      if (const auto slack = slack_.find(tid.value); slack != slack_.end()) state.settings->timer_slack = slack->second;
      if (const auto told = told_.find(tid.value); i > 0 && told != told_.end() && told->second == *state.settings)
        state.settings.reset();
      image.threads[i] = std::move(state);
    };
    if (capture.complete()) keep(capture.state());
    if (capture.complete() && i > 0) continue;
    auto batch = TRY(relay.batch());
    if (i == 0) {
      process.ask(batch);
      for (const int number : numbers)
        flags.push_back(batch.call(SYS_fcntl, {static_cast<std::uint64_t>(number), F_GETFD}));
    }
    if (!capture.complete()) capture.ask(batch);
    TRY(relay.begin(thread.tracee, std::move(batch), [&, keep, i, tid](const kernel::Batch& done) -> Result<void> {
      if (i == 0) {
        image.process = TRY(process.take(done, clock_));
        for (std::size_t n = 0; n < flags.size(); ++n)
          if ((done.result(flags[n]) & FD_CLOEXEC) != 0) image.close_on_exec.push_back(numbers[n]);
      }
      if (capture.complete()) return {};
      auto state = TRY(capture.take(done, tid));
      if (!own_sets) {
        state.settings->credentials.ambient = frozen.ids.status.cap_ambient;
        state.settings->credentials.bounding = frozen.ids.status.cap_bounding;
      }
      keep(std::move(state));
      return {};
    }));
  }
  TRY(relay.finish());
  image.stopped = first.group_stopped();
  image.process.pid = leaving.ids.pod;
  return image;
}

/// What the kernel says of these threads, as far as it can be read: whoever is missing is asked by a batch.
std::map<pid_t, kernel::TaskFacts> Departure::read_tasks(const std::vector<HostPid>& threads) {
  std::map<pid_t, kernel::TaskFacts> found;
  if (!tasks_ || !tasks_->know(threads)) return found;
  auto read = tasks_->read(threads);
  if (!read) return found;
  for (std::size_t i = 0; i < threads.size(); ++i)
    if ((*read)[i]) found[threads[i].value] = std::move(*(*read)[i]);
  return found;
}

Result<void> Departure::send_state() {
  wire::State state;
  std::vector<HostPid> threads;
  for (const auto& process : frozen_)
    for (const auto& thread : process.threads) threads.push_back(thread.ids.host);
  in_hand_.reserve(threads.size());
  facts_of_ = read_tasks(threads);
  for (auto& process : frozen_) {
    if (process.ids.zombie) continue;
    auto image = capture_process(process, processes_.at(process.ids.host.value));
    if (!image)
      return std::unexpected(std::move(image).error().within(fmt::format("capture process {}", process.ids.pod.value)));
    state.processes.push_back(std::move(*image));
  }
  state.last_pid = last_pid_;
  TRY(control_->send(wire::Type::state, state));
  freeze_watch_.lap("threads");
  return {};
}

Result<void> Departure::send_objects() {
  TRY(control_->send(wire::Type::objects, wire::Objects{std::move(images_)}));
  freeze_watch_.lap("send objects");
  return {};
}

Result<void> Departure::pin() {
  TRY(pod_.workload().freeze());
  pinned_ = true;
  // Were we to die now, the kernel must not answer for the pod as it was: what it acknowledged would be lost.
  TRY(pod_.deposit_gate());
  freeze_watch_.lap("pin");
  // Nobody writes any more. Whoever dies after the commit, the log is there as a whole; meanwhile the destination
  // rebuilds.
  TRY(pod_.flush());
  TRY(send_logs());
  for (const auto& execution : executions_)
    TRY(control_->send(wire::Type::execution, TRY(pod_.execution(execution.id))));
  const bool input_ended = pod_.spec().program.input && TRY(pod_.life()).input_ended;
  TRY(control_->send(wire::Type::streams_end, wire::StreamsEnd{input_ended}));
  freeze_watch_.lap("streams");
  TRY(finish_last_pages());
  auto rebuilt = TRY(expect(wire::Type::rebuilt, step_limit));
  const auto spans = TRY(image::unpack<wire::Spans>(rebuilt.payload));
  TRY(check(spans));
  freeze_watch_.lap("wait for the destination");
  for (const auto& span : spans.spans) report_.freeze.push_back({"destination: " + span.name, span.us});
  return {};
}

Result<void> Departure::commit() {
  TRY(check_cancelled());
  if (!site_.commits()) return fail(ErrorKind::cancelled, "the migration of {} was cancelled", report_.pod);
  committing_ = true;
  control::Claim claim({control::Claim::Role::source, site_.node, site_.destination, owner_of(record_)});
  const auto in_doubt = [this](control::Time pause) {
    auto event = site_.in_doubt(pause);
    by_word_ = event && std::holds_alternative<control::Claim::Resolved>(*event);
    return event;
  };
  // Whatever happens in between: from here on only the claim knows.
  report_.fate.reset();
  report_.fate = carry_out(claim, control::Claim::Commit{}, record_, site_.store, in_doubt);
  freeze_watch_.lap("commit");
  fault::reach("source.committed");
  if (!report_.fate) return fail(ErrorKind::busy, "{} is in doubt, and left so", report_.pod);
  switch (*report_.fate) {
    case control::Fate::there:
      return {};
    case control::Fate::here:
      return fail(ErrorKind::unreachable, "{} took the commit of {} back: it had lost this node, or the store was away",
                  site_.destination, report_.pod);
    case control::Fate::gone:
      break;
  }
  return fail(ErrorKind::gone, "{} belongs to somebody else by now, or to nobody", report_.pod);
}

void Departure::give_up(const Error& why) {
  if (control_) (void)control_->send(wire::Type::abort, wire::Text{why.message()});
  if (sending_.joinable()) sending_.join();
  end_answering();
  if (pinned_) {
    (void)pod_.workload().thaw();
    (void)pod_.forget_gate();
    pinned_ = false;
  }
  descriptors_.reset();
  // Calls that were interrupted are made ready while the gadget is there, and everything else is put back when it is
  // gone.
  for (const bool gadget_there : {true, false}) {
    for (auto& hand : in_hand_) {
      auto back = gadget_there ? hand.capture.rearm(processes_.at(hand.process).gadget, *hand.tracee, clock_)
                               : hand.capture.put_back(*hand.tracee);
      if (!back) log::warn("{}: thread {}: {}", report_.pod, hand.tid.value, back.error().message());
    }
    if (!gadget_there) continue;
    for (auto& process : frozen_) {
      auto leaving = processes_.find(process.ids.host.value);
      if (leaving == processes_.end() || !leaving->second.gadget || process.threads.empty()) continue;
      if (leaving->second.gadget.remove(process.threads.front().tracee)) leaving->second.gadget = {};
    }
  }
  const bool was_frozen = !frozen_.empty();
  let_down();
  thaw_all(frozen_);
  for (auto& hand : in_hand_) (void)hand.capture.running(hand.tid);
  in_hand_.clear();
  if (holding_) {
    auto released = pod_.gate().release();
    if (!released) log::error("{}: the network stays held: {}", report_.pod, released.error().message());
    holding_ = false;
  }
  (void)pod_.raising({});
  if (was_frozen) report_.pauses_us.push_back(static_cast<std::uint64_t>(now_ns() - stopped_at_) / 1000);
  bool left = false;
  for (auto& [host, leaving] : processes_) {
    if (!leaving.memory) continue;
    leaving.memory->untrack();
    if (!leaving.gadget) continue;
    auto pause = remove_gadget(pod_.init(), {leaving.ids.host, leaving.ids.pod}, leaving.gadget, clock_);
    if (pause) report_.pauses_us.push_back(*pause);
    left = left || (!pause && pause.error().kind != ErrorKind::gone);
    leaving.gadget = {};
  }
  // What couldn't be undone is the next daemon's.
  if (!left && !options_.dry_run) remove_journal(pod_);
  report_.error = why.message();
}

}  // namespace godwit::migrate
