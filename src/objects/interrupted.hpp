#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "image/codec.hpp"
#include "kernel/memory.hpp"
#include "kernel/remote.hpp"
#include "kernel/tracee.hpp"
#include "objects/pod_clock.hpp"

/// System calls that the freeze interrupted, and how they go on so that the program can't tell.
///
/// A thread that is stopped inside a call has `orig_rax` >= 0 and one of the kernel's private results in `rax`. What
/// each of them needs:
///   -512 … -514  Nothing: the kernel makes the call again when the thread is resumed with these very registers, at the
///                destination too. Calls that keep their time in the program's memory (select, pselect, ppoll) have the
///                time that is left written there by the kernel itself; absolute deadlines need nothing.
///   -516         The kernel keeps a restart block (nanosleep, poll, futex with a relative timeout) that no one can
///                read. It is made anew: the same call with the time that is left, interrupted at once.
///   -4           A call that is never restarted after a signal handler (epoll_wait, receive with a timeout,
///                sigtimedwait, semtimedop, io_getevents) shows EINTR to the program although there was no signal, only
///                us. It is made again (-514: a handler, if there is one, still yields EINTR), with the time that is
///                left.
namespace godwit::objects {

/// When a thread went to sleep.
struct SleepMark {
  bool sleeping = false;
  std::int64_t began = 0;  ///< on the pod's clock, ns; never too early, late by what the hypervisor stole meanwhile
};

/// Tells since when threads sleep, from the scheduler's figures. Each processor has a clock of its own there, which
/// stands still while a hypervisor has the processor (milliseconds a second on a busy machine): the processors in
/// question are visited once each, some 50 µs. One for each freeze, used before it.
class SleepClock {
 public:
  explicit SleepClock(PodClock clock) : clock_(clock) {}
  /// Taken while the thread still sleeps, just before the stop: waking resets the scheduler's figure.
  Result<SleepMark> mark(HostPid tid);

 private:
  PodClock clock_;
  std::map<int, std::int64_t> offsets_;  ///< of the pod's clock to a processor's, ns
};

/// What an interrupted call needs beyond the thread's registers.
struct Interrupted {
  /// "no": not in a call, or nothing is needed. "again": only the result register changes. "block": a restart block is
  /// made. "shorter": the timeout in a register becomes what is left. "lent": the timeout in the program's memory, or
  /// of its socket, is what is left until the call sleeps again (`Loan`); `give_back` undoes it.
  std::string how = "no";
  std::int64_t number = -1;    ///< of the system call
  std::int64_t deadline = -1;  ///< on the pod's clock, ns; -1: none
  std::int64_t clock = 0;      ///< of clock_nanosleep
  Bytes lent;                  ///< the timeout as the program set it
  MSGPACK_DEFINE_MAP(how, number, deadline, clock, lent)
};

/// Looks at a thread that has just been stopped, before any batch has run in it. Reads the program's memory.
Result<Interrupted> describe(kernel::Tracee&, const kernel::Registers&, const SleepMark&, const PodClock&);

/// Memory that `rearm` and the resumed call touch at once, in the kernel: with post-copy it must be there before, or
/// the thread hangs in a fault. Up to two ranges; size 0: none.
struct Touched {
  RemoteAddress begin = 0;
  std::uint64_t size = 0;
};
std::array<Touched, 2> touched(const Interrupted&, const kernel::Registers&);

/// What is "lent" to a call, to be given back once the thread runs. This is the memory or the socket itself, taken
/// while the thread stood still: its number may be somebody else's by then.
struct Loan {
  std::shared_ptr<const kernel::MemoryFile> memory;  ///< or else `socket`
  RemoteAddress where = 0;
  Fd socket;
  int option = 0;
  Bytes own;  ///< the timeout as the program set it
};

/// A call that is ready to go on.
struct Rearmed {
  kernel::Registers registers{};  ///< to be set last
  std::optional<Loan> loan;
};

/// Makes the call ready to go on in a stopped thread (of a rebuilt process, or of the source after an aborted move). To
/// be called after all batches: any of them may overwrite a restart block. Signals must be blocked in the thread, and
/// its descriptors and memory be in place.
Result<Rearmed> rearm(kernel::Gadget&, kernel::Tracee&, const Interrupted&, const kernel::Registers&, const PodClock&);

/// True of a thread that sleeps in a call which leaves a restart block when it is interrupted: read from outside, while
/// it runs, so it may be otherwise a moment later.
bool sleeps_with_block(HostPid tid);

/// Lets a stopped thread stand where a system call of its begins, whatever it is: from there `rearm` makes a restart
/// block in one step instead of two, which is for before the freeze. All its signals are blocked then.
Result<void> park(kernel::Gadget&, kernel::Tracee&);

/// One of several threads of a process that `rearm` makes ready at once.
struct Rearming {
  kernel::Tracee* thread = nullptr;
  const Interrupted* call = nullptr;
  kernel::Registers registers;  ///< the program's; afterwards those to be set last
  bool parked = false;          ///< it isn't any more when it is ready
  std::optional<Loan> loan = {};
};
Result<void> rearm(kernel::Gadget&, std::span<Rearming>, const PodClock&);

/// After the thread runs again: takes back what was lent as soon as the call sleeps, or has ended. Waits 20 ms at most.
Result<void> give_back(HostPid tid, const Loan&);

}  // namespace godwit::objects
