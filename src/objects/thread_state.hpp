#pragma once

#include <optional>
#include <vector>

#include "image/codec.hpp"
#include "kernel/remote.hpp"
#include "kernel/task_reader.hpp"
#include "kernel/tracee.hpp"
#include "objects/credentials.hpp"
#include "objects/interrupted.hpp"
#include "objects/scheduling.hpp"
#include "objects/timers.hpp"

/// Everything about one thread that is neither memory nor a descriptor.
namespace godwit::objects {

/// What a program sets once and rarely changes. It is read, told and applied before the freeze, and only compared in
/// it.
struct ThreadSettings {
  std::string name;                                 ///< comm
  std::uint64_t stack_pointer = 0, stack_size = 0;  ///< alternate signal stack
  std::int32_t stack_flags = 0;                     ///< without SS_ONSTACK, which follows from the registers
  std::uint64_t robust_list = 0, robust_size = 0;
  std::uint64_t clear_tid = 0;  ///< where the kernel writes 0 and wakes when the thread ends
  std::uint64_t rseq = 0;       ///< restartable sequences: 0 when not registered
  std::uint32_t rseq_size = 0, rseq_signature = 0;
  Scheduling scheduling;
  Credentials credentials;
  std::uint64_t timer_slack = 0;  ///< ns
  std::uint64_t personality = 0;
  std::int32_t parent_death_signal = 0;
  bool no_new_privileges = false;
  bool operator==(const ThreadSettings&) const = default;
  MSGPACK_DEFINE_MAP(name, stack_pointer, stack_size, stack_flags, robust_list, robust_size, clear_tid, rseq, rseq_size,
                     rseq_signature, scheduling, credentials, timer_slack, personality, parent_death_signal,
                     no_new_privileges)
};

/// As the kernel has them. What is asked of a thread that runs may be out of date by the time it is used.
ThreadSettings settings_of(const kernel::TaskFacts&, Scheduling scheduling);

struct ThreadState {
  PodPid tid;
  Bytes registers;  ///< kernel::Registers: general, fs_base and gs_base too
  Bytes xstate;     ///< XSAVE area, standard format; cut where AMX begins when that is unused
  std::uint64_t mask = 0;
  std::vector<Bytes> pending;  ///< siginfo_t of the signals queued for this thread, oldest first
  Bytes dispatch;              ///< syscall user dispatch: ptrace_sud_config; empty when off
  Interrupted interrupted;
  std::optional<ThreadSettings> settings;  ///< none on the wire: as they were told before the freeze
  MSGPACK_DEFINE_MAP(tid, registers, xstate, mask, pending, dispatch, interrupted, settings)
};

/// Captures one stopped thread: `look`, then `ask` and a run of the batch in this very thread, then `take`. Where the
/// kernel's own facts of it are known, `look` is all.
class ThreadCapture {
 public:
  /// `own_sets`: ask for the ambient and bounding capabilities of this thread. Without, the caller copies them from
  /// another thread of the process, having seen that all are the same (`same_capability_sets`).
  ThreadCapture(PodPid tid, bool own_sets) : own_sets_(own_sets) { state_.tid = tid; }

  /// What can be read from outside. Right after the stop, before any batch in the thread. Leaves a restartable
  /// sequence (sets the program counter to its abort handler: what any preemption does) and switches syscall user
  /// dispatch off, which would catch our own calls; `put_back` switches it on again.
  /// `scheduling`: as it was before the freeze raised it. `facts`: read since the thread has stopped, or none.
  Result<void> look(kernel::Tracee&, const SleepMark&, const PodClock&, Scheduling scheduling,
                    const kernel::TaskFacts* facts = nullptr);
  /// True when nothing is left to be asked: `state` is what `take` would give.
  [[nodiscard]] bool complete() const { return complete_; }
  [[nodiscard]] const ThreadState& state() const { return state_; }
  void ask(kernel::Batch&);
  Result<ThreadState> take(const kernel::Batch&, HostPid tid);

  /// When the move is given up at the source, after the last batch: the interrupted call is made ready again, which
  /// blocks all signals; then, the gadget gone, everything is as it was; then the thread runs.
  Result<void> rearm(kernel::Gadget&, kernel::Tracee&, const PodClock&);
  Result<void> put_back(kernel::Tracee&);
  Result<void> running(HostPid tid);

 private:
  bool own_sets_, complete_ = false;
  ThreadState state_;
  Rearmed final_;
  CredentialsCapture credentials_;
  RemoteAddress name_ = 0, stack_ = 0, clear_tid_ = 0, robust_ = 0, death_signal_ = 0;
  kernel::Batch::Call name_call_{}, stack_call_{}, clear_tid_call_{}, robust_call_{}, slack_{}, personality_{},
      death_signal_call_{}, no_new_privileges_{};
};

/// Rebuilds a thread that stands stopped in the gadget, made by clone3 with the right id. In this order; the batches
/// run in this very thread.
class ThreadRestore {
 public:
  /// `told`: all of its settings but the policy have been applied to this very thread before; then `tell` and
  /// `credentials` are not called. `parked`: by `park`.
  explicit ThreadRestore(const ThreadState& state, bool told = false, bool parked = false)
      : state_(state), told_(told), parked_(parked) {}

  /// Memory is in place (registering rseq writes to it). Still privileged.
  void tell(kernel::Batch&);
  /// Everything that needs privileges is done. `tid` is this thread, as the batch's caller sees it.
  Result<void> credentials(kernel::Batch&, HostPid tid);
  /// After the last batch. Requires descriptors and memory in place (see `touched`). Leaves the thread stopped with
  /// the program's registers: let go, it runs on. Scheduling comes last, so that a raised priority lasts until here.
  Result<void> finish(kernel::Gadget&, kernel::Tracee&, const PodClock&);
  /// As `finish` in three steps, for a gadget that goes in between: `rearm` needs the gadget, `settle` doesn't.
  Result<void> rearm(kernel::Gadget&, kernel::Tracee&, const PodClock&);
  /// `timer_slack`: what the thread has when a real-time class is taken from it (ns).
  Result<void> settle(kernel::Tracee&, std::uint64_t timer_slack = 0);
  /// `rearm` for many threads of one process at once.
  static Result<void> rearm(kernel::Gadget&, std::span<ThreadRestore* const>, std::span<kernel::Tracee* const>,
                            const PodClock&);
  /// After the thread runs: `give_back` of the interrupted call. Cheap when there is nothing to give back.
  Result<void> running(HostPid tid);

 private:
  const ThreadState& state_;
  bool told_, parked_;
  Rearmed final_;
  bool armed_ = false;
};

/// All settings, in a thread that stands stopped in the gadget, by this batch; what is set from outside is set at once.
/// The memory that is registered must be in place. Afterwards the thread has no more privileges than the program's.
Result<void> apply_settings(kernel::Batch&, kernel::Tracee&, PodPid tid, const ThreadSettings&);
/// Ends a thread to which settings have been applied: it writes nothing to the program's memory any more.
void end_thread(kernel::Gadget&, kernel::Tracee&, const std::optional<ThreadSettings>&);

/// Signals queued for a thread, or, without `thread`, for the whole process, are queued again by a batch in one of its
/// threads. Begins at `from` and returns where it stopped because the batch is full: run it and go on with another.
/// What the process's restored timers queue by themselves is left out.
Result<std::size_t> requeue_signals(kernel::Batch&, const std::vector<Bytes>& signals, std::size_t from, PodPid process,
                                    std::optional<PodPid> thread, const Timers&);
/// The other way round: what a stopped thread has pending.
Result<std::vector<Bytes>> queued_signals(const kernel::Tracee&, bool shared);

/// True when all threads of the process have the same bounding and ambient capabilities. From /proc, before the freeze.
Result<bool> same_capability_sets(HostPid process);

/// Takes away what a stub has registered in memory that is about to be unmapped: rseq, robust list, clear-tid,
/// alternate stack. Run in the stub's thread before its memory goes.
Result<void> forget_stub_registrations(kernel::Tracee& stub, kernel::Batch&);

}  // namespace godwit::objects
