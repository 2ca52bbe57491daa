#include "kernel/tracee.hpp"

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <algorithm>

#include "kernel/memory.hpp"
#include "kernel/procfs.hpp"
#include "kernel/wait_limit.hpp"

namespace godwit::kernel {

namespace {

constexpr int suspend_seccomp = 1 << 21;  // PTRACE_O_SUSPEND_SECCOMP, which glibc doesn't define
constexpr auto get_rseq_configuration = static_cast<__ptrace_request>(0x420f);

template <typename Address, typename Data>
long ptrace_call(__ptrace_request request, HostPid tid, Address address, Data data) {
  return ::ptrace(request, tid.value, address, data);
}

std::unexpected<Error> fail_gone(HostPid tid) {
  return fail(ErrorKind::gone, "thread {} has ended", tid.value);
}

/// struct rseq_cs of linux/rseq.h.
struct RseqSection {
  std::uint32_t version;
  std::uint32_t flags;
  std::uint64_t start;
  std::uint64_t length;
  std::uint64_t abort;
};

constexpr std::uint64_t rseq_section_offset = 8;  // of rseq_cs in struct rseq

/// waitpid with a time limit. Returns its answer; 0 when the time is over. It sleeps at once: a stop comes some 6 us
/// after it was asked for, asking without sleeping wins less than 1 us of it, and the tracee may need our processor.
pid_t wait_until(HostPid tid, int& raw, std::chrono::nanoseconds limit) {
  const WaitLimit end(limit);
  while (true) {
    const pid_t answer = ::waitpid(tid.value, &raw, __WALL);
    if (answer >= 0 || errno != EINTR) return answer;
    if (end.over()) return 0;
  }
}

}  // namespace

bool WaitStatus::exited() const {
  return WIFEXITED(raw_);
}
bool WaitStatus::killed() const {
  return WIFSIGNALED(raw_);
}
bool WaitStatus::stopped() const {
  return WIFSTOPPED(raw_);
}
int WaitStatus::signal() const {
  return stopped() ? WSTOPSIG(raw_) : WTERMSIG(raw_);
}
int WaitStatus::exit_code() const {
  return WEXITSTATUS(raw_);
}
int WaitStatus::event() const {
  return stopped() ? raw_ >> 16 : 0;
}

Result<Tracee> Tracee::seize(HostPid tid, int options) {
  // Stops at system calls are always told from traps: that needs no setting and unsetting around each call of ours.
  options |= PTRACE_O_TRACESYSGOOD;
  // A seccomp filter of the target would judge our system calls too. EPERM when this daemon has a filter of its own.
  const int wanted = options | suspend_seccomp;
  Tracee tracee(tid);
  tracee.options_ = wanted;
  if (ptrace_call(PTRACE_SEIZE, tid, nullptr, wanted) == 0) return tracee;
  const int first = errno;
  tracee.options_ = options;
  if ((first == EPERM || first == EINVAL) && ptrace_call(PTRACE_SEIZE, tid, nullptr, options) == 0) return tracee;
  tracee.attached_ = false;
  errno = first;
  if (errno == EPERM) {
    // EPERM is also what a zombie answers.
    const auto stat = read_stat(tid);
    if (!stat || stat->state == 'Z' || stat->state == 'X') return fail_gone(tid);
    errno = first;
  }
  return fail_errno("seize thread {}", tid.value);
}

Tracee Tracee::adopt(HostPid tid) {
  return Tracee(tid);
}

Tracee::Tracee(Tracee&& other) noexcept {
  *this = std::move(other);
}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
  if (this == &other) return *this;
  if (attached_ && tid_.value != 0) (void)detach();
  tid_ = std::exchange(other.tid_, {});
  options_ = other.options_;
  signal_ = other.signal_;
  attached_ = std::exchange(other.attached_, false);
  stopped_ = other.stopped_;
  group_stopped_ = other.group_stopped_;
  sequence_left_ = other.sequence_left_;
  known_registers_ = other.known_registers_;
  known_mask_ = other.known_mask_;
  known_rseq_ = other.known_rseq_;
  return *this;
}

Tracee::~Tracee() {
  if (attached_ && tid_.value != 0) (void)detach();
}

Result<void> Tracee::interrupt() {
  if (ptrace_call(PTRACE_INTERRUPT, tid_, nullptr, nullptr) < 0) return fail_errno("interrupt thread {}", tid_.value);
  return {};
}

Result<WaitStatus> Tracee::wait(std::chrono::milliseconds limit) {
  int raw = 0;
  const pid_t answer = wait_until(tid_, raw, limit);
  if (answer == 0) return fail(ErrorKind::timeout, "thread {} has not stopped within {} ms", tid_.value, limit.count());
  if (answer < 0) {
    // ECHILD: another thread of the process has called exec, or somebody else has collected it.
    attached_ = errno != ECHILD;
    if (!attached_) return fail_gone(tid_);
    return fail_errno("wait for thread {}", tid_.value);
  }
  const WaitStatus status(raw);
  stopped_ = status.stopped();
  signal_ = 0;
  group_stopped_ = false;
  sequence_left_ = false;
  known_registers_.reset();
  known_mask_.reset();
  known_rseq_.reset();
  if (!stopped_) attached_ = false;
  if (stopped_ && status.event() == 0 && status.signal() != (SIGTRAP | 0x80)) signal_ = status.signal();
  if (status.event() == PTRACE_EVENT_STOP) group_stopped_ = status.signal() != SIGTRAP;
  return status;
}

Result<WaitStatus> Tracee::wait_stop(std::chrono::milliseconds limit) {
  // Every stop that isn't the one asked for may have swallowed the request ("any trap clears pending STOP trap",
  // kernel/signal.c), so it is made again. A stream of signals can't starve us: the request comes first.
  constexpr int most_stops = 1000;
  for (int stops = 0; stops < most_stops; ++stops) {
    const WaitStatus status = TRY(wait(limit));
    if (!status.stopped()) return fail_gone(tid_);
    if (status.event() == PTRACE_EVENT_STOP) return status;
    TRY(interrupt());
    TRY(resume(signal_));
  }
  return fail(ErrorKind::timeout, "thread {} does nothing but receive signals", tid_.value);
}

Result<Registers> Tracee::registers() const {
  if (known_registers_) return *known_registers_;
  Registers registers{};
  iovec where{&registers, sizeof registers};
  if (ptrace_call(PTRACE_GETREGSET, tid_, NT_PRSTATUS, &where) < 0)
    return fail_errno("read the registers of thread {}", tid_.value);
  known_registers_ = registers;
  return registers;
}

Result<void> Tracee::set_registers(const Registers& registers) {
  known_registers_.reset();
  iovec where{const_cast<Registers*>(&registers), sizeof registers};
  if (ptrace_call(PTRACE_SETREGSET, tid_, NT_PRSTATUS, &where) < 0)
    return fail_errno("set the registers of thread {}", tid_.value);
  known_registers_ = registers;
  return {};
}

Result<Bytes> Tracee::xstate() const {
  constexpr std::size_t most = 64 * KiB;  // with AMX tiles it is 11,008 bytes
  thread_local Bytes buffer(most);
  iovec where{buffer.data(), buffer.size()};
  if (ptrace_call(PTRACE_GETREGSET, tid_, NT_X86_XSTATE, &where) < 0)
    return fail_errno("read the extended registers of thread {}", tid_.value);
  return Bytes(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(where.iov_len));
}

Result<void> Tracee::set_xstate(BytesView state) {
  iovec where{const_cast<std::uint8_t*>(state.data()), state.size()};
  if (ptrace_call(PTRACE_SETREGSET, tid_, NT_X86_XSTATE, &where) < 0)
    return fail_errno("set the extended registers of thread {}", tid_.value);
  return {};
}

Result<std::uint64_t> Tracee::signal_mask() const {
  if (known_mask_) return *known_mask_;
  std::uint64_t mask = 0;
  if (ptrace_call(PTRACE_GETSIGMASK, tid_, sizeof mask, &mask) < 0)
    return fail_errno("read the signal mask of thread {}", tid_.value);
  known_mask_ = mask;
  return mask;
}

Result<void> Tracee::set_signal_mask(std::uint64_t mask) {
  // The kernel never blocks these two.
  mask &= ~(1ULL << (SIGKILL - 1) | 1ULL << (SIGSTOP - 1));
  known_mask_.reset();
  if (ptrace_call(PTRACE_SETSIGMASK, tid_, sizeof mask, &mask) < 0)
    return fail_errno("set the signal mask of thread {}", tid_.value);
  known_mask_ = mask;
  return {};
}

Result<RseqRegistration> Tracee::rseq() const {
  if (known_rseq_) return *known_rseq_;
  RseqRegistration registration;
  if (ptrace_call(get_rseq_configuration, tid_, sizeof registration, &registration) < 0)
    return fail_errno("read the rseq registration of thread {}", tid_.value);
  known_rseq_ = registration;
  return registration;
}

Result<std::vector<siginfo_t>> Tracee::pending_signals(bool shared) const {
  constexpr int at_once = 32;
  constexpr std::size_t most = 65'536;  // RLIMIT_SIGPENDING can be set higher; nobody means to keep that many
  std::vector<siginfo_t> signals;
  while (true) {
    const std::size_t before = signals.size();
    if (before >= most) return fail(ErrorKind::refused, "thread {} has more than {} queued signals", tid_.value, most);
    signals.resize(before + at_once);
    __ptrace_peeksiginfo_args request{};
    request.off = before;
    request.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
    request.nr = at_once;
    const long count = ptrace_call(PTRACE_PEEKSIGINFO, tid_, &request, signals.data() + before);
    if (count < 0) return fail_errno("read the queued signals of thread {}", tid_.value);
    signals.resize(before + static_cast<std::size_t>(count));
    if (count < at_once) return signals;
  }
}

Result<void> Tracee::go_on(int request, int signal) {
  if (ptrace_call(static_cast<__ptrace_request>(request), tid_, nullptr, static_cast<long>(signal)) < 0)
    return fail_errno("continue thread {}", tid_.value);
  stopped_ = false;
  signal_ = 0;
  known_registers_.reset();
  known_mask_.reset();
  known_rseq_.reset();
  return {};
}

Result<void> Tracee::resume(int signal) {
  return go_on(PTRACE_CONT, signal);
}
Result<void> Tracee::resume_to_syscall(int signal) {
  return go_on(PTRACE_SYSCALL, signal);
}
Result<void> Tracee::step() {
  return go_on(PTRACE_SINGLESTEP, 0);
}

Result<std::uint64_t> Tracee::event_message() const {
  unsigned long message = 0;
  if (ptrace_call(PTRACE_GETEVENTMSG, tid_, nullptr, &message) < 0)
    return fail_errno("read the event of thread {}", tid_.value);
  return message;
}

Result<void> Tracee::set_options(int options) {
  options |= options_ & suspend_seccomp;
  if (options == options_) return {};
  if (ptrace_call(PTRACE_SETOPTIONS, tid_, nullptr, static_cast<long>(options)) < 0)
    return fail_errno("set the trace options of thread {}", tid_.value);
  options_ = options;
  return {};
}

Result<void> Tracee::leave_restartable_sequence() {
  if (sequence_left_) return {};
  sequence_left_ = true;
  const auto asked = rseq();
  // EINVAL: a kernel without rseq.
  if (!asked || asked->address == 0) return {};
  const RseqRegistration& configuration = *asked;
  std::uint64_t where = 0;
  const auto pointer = read_memory(tid_, configuration.address + rseq_section_offset, &where, sizeof where);
  if (!pointer || *pointer != sizeof where || where == 0) return {};
  RseqSection section{};
  const auto got = read_memory(tid_, where, &section, sizeof section);
  if (!got || *got != sizeof section) return {};
  Registers registers = TRY(this->registers());
  if (registers.rip - section.start >= section.length) return {};
  registers.rip = section.abort;
  TRY(set_registers(registers));
  const std::uint64_t none = 0;
  TRY(write_memory(tid_, configuration.address + rseq_section_offset, &none, sizeof none));
  return {};
}

Result<void> Tracee::detach() {
  constexpr auto patience = std::chrono::milliseconds(200), mourning = std::chrono::milliseconds(20);
  if (!attached_) return {};
  if (!stopped_) {
    // ESRCH when it is dying: then the wait collects it.
    (void)interrupt();
    TRY(wait_stop(patience));
  }
  if (ptrace_call(PTRACE_DETACH, tid_, nullptr, static_cast<long>(signal_)) < 0) {
    const int code = errno;
    // A killed tracee stays a zombie until its tracer has collected it, and its pid namespace can't end before.
    if (code == ESRCH) (void)wait(mourning);
    errno = code;
    return fail_errno("detach from thread {}", tid_.value);
  }
  attached_ = false;
  stopped_ = false;
  return {};
}

}  // namespace godwit::kernel
