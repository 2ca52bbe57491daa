#pragma once

#include <sys/user.h>

#include <chrono>
#include <csignal>
#include <optional>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::kernel {

/// General registers of a thread (PTRACE_GETREGSET NT_PRSTATUS).
using Registers = user_regs_struct;

/// How a wait on a tracee ended. Never an int.
class WaitStatus {
 public:
  explicit WaitStatus(int raw) : raw_(raw) {}
  [[nodiscard]] bool exited() const;
  [[nodiscard]] bool killed() const;
  [[nodiscard]] bool stopped() const;
  [[nodiscard]] int signal() const;  ///< the stop or death signal
  [[nodiscard]] int exit_code() const;
  [[nodiscard]] int event() const;  ///< PTRACE_EVENT_*, 0 when none
  [[nodiscard]] int raw() const { return raw_; }

 private:
  int raw_;
};

/// A thread's registration for restartable sequences (struct ptrace_rseq_configuration); address 0: it has none.
struct RseqRegistration {
  std::uint64_t address = 0;
  std::uint32_t size = 0, signature = 0, flags = 0, padding = 0;
};

/// One thread of another process, seized by the calling thread. ptrace is bound to a thread: every call must come from
/// the thread that seized. A tracee that has died is an `Error` of kind `gone` everywhere.
///
/// Destruction detaches; what was not put back stays as it is, so put registers and mask back first.
class Tracee {
 public:
  /// PTRACE_SEIZE (no stop). Options: TRACECLONE|TRACEFORK|TRACEVFORK|TRACEEXEC as given, plus SUSPEND_SECCOMP.
  static Result<Tracee> seize(HostPid tid, int options = 0);
  /// A thread that is already a tracee of ours: a child reported by PTRACE_EVENT_CLONE and its kin.
  static Tracee adopt(HostPid tid);

  Tracee(Tracee&&) noexcept;
  Tracee& operator=(Tracee&&) noexcept;
  /// For what takes microseconds: a machine that is out of breath stalls for seconds.
  static constexpr std::chrono::seconds patience{10};
  /// For a thread that has registers of ours: let go before it has its own again, it would run into nowhere.
  static constexpr std::chrono::seconds patience_for_own{60};

  Tracee(const Tracee&) = delete;
  Tracee& operator=(const Tracee&) = delete;
  ~Tracee();

  [[nodiscard]] HostPid tid() const { return tid_; }

  /// PTRACE_INTERRUPT without waiting: interrupt all, then wait for all.
  Result<void> interrupt();
  /// Waits for the stop that `interrupt` asked for. A signal that arrives first is delivered as it would have been
  /// without us: the thread then stops before the first instruction of its handler, and nothing has to be kept.
  /// `timeout` when it hasn't stopped by then (a vfork parent, a thread in an uninterruptible sleep).
  Result<WaitStatus> wait_stop(std::chrono::milliseconds limit = patience);
  [[nodiscard]] bool stopped() const { return stopped_; }
  /// True when the stop was a group stop (job control: SIGSTOP, SIGTSTP …).
  [[nodiscard]] bool group_stopped() const { return group_stopped_; }

  Result<Registers> registers() const;
  Result<void> set_registers(const Registers&);
  /// Full XSAVE area in the standard format (NT_X86_XSTATE).
  Result<Bytes> xstate() const;
  Result<void> set_xstate(BytesView);
  /// Blocked signals (PTRACE_GETSIGMASK), bit n-1 for signal n.
  Result<std::uint64_t> signal_mask() const;
  Result<void> set_signal_mask(std::uint64_t);
  Result<RseqRegistration> rseq() const;
  /// Queued signals (PTRACE_PEEKSIGINFO), oldest first, not consumed. `shared`: those of the whole process.
  Result<std::vector<siginfo_t>> pending_signals(bool shared) const;

  /// PTRACE_CONT with an optional signal; the tracee runs.
  Result<void> resume(int signal = 0);
  Result<void> step();
  /// PTRACE_SYSCALL: like `resume`, but stops at the next system call's entry or exit too.
  Result<void> resume_to_syscall(int signal = 0);
  /// Waits for the next stop of whatever kind, consuming it. The signal of a signal-delivery stop is the caller's to
  /// pass to `resume`; `detach` passes it by itself.
  Result<WaitStatus> wait(std::chrono::milliseconds limit = patience);
  /// PTRACE_GETEVENTMSG: after a clone or fork event the new thread's id.
  Result<std::uint64_t> event_message() const;
  /// PTRACE_SETOPTIONS (the thread must be stopped), plus SUSPEND_SECCOMP if `seize` could set it.
  Result<void> set_options(int options);
  [[nodiscard]] int options() const { return options_; }
  /// When the thread stands inside a restartable sequence (rseq(2)), moves it to the sequence's abort handler, as
  /// preemption would have. Any code of ours that runs in the thread would make the kernel forget the sequence.
  Result<void> leave_restartable_sequence();
  /// Lets go. The thread runs on (or stays group-stopped, or frozen by its cgroup).
  Result<void> detach();

 private:
  friend class Gadget;
  explicit Tracee(HostPid tid) : tid_(tid) {}
  Result<void> go_on(int request, int signal);
  HostPid tid_{};
  int options_ = 0;
  int signal_ = 0;  ///< of the signal-delivery stop that the thread is in
  bool attached_ = true;
  bool stopped_ = false;
  bool group_stopped_ = false;
  bool sequence_left_ = false;  ///< leave_restartable_sequence has been done since the last resume
  /// What the thread is known to have while it stays stopped: a system call to read them costs 0.6 to 1.2 us.
  mutable std::optional<Registers> known_registers_;
  mutable std::optional<std::uint64_t> known_mask_;
  mutable std::optional<RseqRegistration> known_rseq_;
};

}  // namespace godwit::kernel
