#include "objects/interrupted.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <ctime>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "kernel/memory.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

// The kernel's private results of an interrupted call (include/linux/errno.h).
constexpr std::int64_t restart_sys = -512, restart_nointr = -513, restart_nohand = -514, restart_block = -516;
constexpr std::int64_t second = 1'000'000'000, millisecond = 1'000'000;
constexpr long epoll_pwait2 = 441;

std::int64_t result_of(const kernel::Registers& registers) {
  return static_cast<std::int64_t>(registers.rax);
}

std::int64_t nanoseconds(const timespec& time) {
  // Longer than a century is for ever; the sum must not overflow.
  constexpr std::int64_t most = 100LL * 366 * 86'400;
  return std::clamp<std::int64_t>(time.tv_sec, 0, most) * second + std::clamp<std::int64_t>(time.tv_nsec, 0, second);
}

timespec to_timespec(std::int64_t time) {
  return {.tv_sec = time / second, .tv_nsec = time % second};
}

Result<timespec> read_timespec(HostPid tid, RemoteAddress where) {
  timespec time{};
  if (TRY(kernel::read_memory(tid, where, &time, sizeof time)) != sizeof time)
    return fail(ErrorKind::failed, "read the timeout of thread {} at {:#x}", tid.value, where);
  return time;
}

/// Which register points to a relative timespec, in calls that leak EINTR; nullptr: another call, or no pointer.
const unsigned long long* timeout_pointer(const kernel::Registers& registers, long number) {
  switch (number) {
    case SYS_rt_sigtimedwait:
      return &registers.rdx;
    case SYS_semtimedop:
      return &registers.r10;
    case SYS_io_getevents:
    case SYS_io_pgetevents:
      return &registers.r8;
    default:
      return nullptr;
  }
}

/// Calls on a socket that obey its SO_RCVTIMEO or SO_SNDTIMEO; -1 for all others.
int socket_timeout_option(long number) {
  switch (number) {
    case SYS_read:
    case SYS_readv:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_accept:
    case SYS_accept4:
      return SO_RCVTIMEO;
    case SYS_write:
    case SYS_writev:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_connect:
    case SYS_sendfile:
    case SYS_splice:
      return SO_SNDTIMEO;
    default:
      return -1;
  }
}

Result<Fd> descriptor_of(HostPid tid, int number) {
  const Fd process = TRY(kernel::pidfd_open(tid, true));
  return kernel::pidfd_getfd(process.get(), number);
}

/// Calls that we have made restartable ourselves, by thread: once they have been restarted, the kernel shows only that.
/// They hold as long as the thread is in the very call: its number may be another's by now, and a program may make all
/// its calls from one place. Only then are place, stack and arguments the same.
class RestartedCalls {
 public:
  void remember(HostPid tid, const kernel::Registers& registers, long number) {
    const std::scoped_lock lock(mutex_);
    if (calls_.size() >= most) calls_.clear();
    calls_[tid.value] = {state_of(registers), number};
  }
  void forget(HostPid tid) {
    const std::scoped_lock lock(mutex_);
    calls_.erase(tid.value);
  }
  std::optional<long> find(HostPid tid, const kernel::Registers& registers) {
    const std::scoped_lock lock(mutex_);
    const auto found = calls_.find(tid.value);
    if (found == calls_.end()) return std::nullopt;
    if (found->second.first == state_of(registers)) return found->second.second;
    calls_.erase(found);
    return std::nullopt;
  }

 private:
  using State = std::array<std::uint64_t, 8>;
  static State state_of(const kernel::Registers& registers) {
    return {registers.rip, registers.rsp, registers.rdi, registers.rsi,
            registers.rdx, registers.r10, registers.r8,  registers.r9};
  }
  static constexpr std::size_t most = 100'000;
  std::mutex mutex_;
  std::map<pid_t, std::pair<State, long>> calls_;
};

RestartedCalls& restarted_calls() {
  static RestartedCalls calls;
  return calls;
}

/// A call that went through a restart block once shows restart_syscall. Its number stands in the program: nearly every
/// wrapper loads eax right before the syscall instruction.
Result<long> number_before_restart(HostPid tid, const kernel::Registers& registers) {
  if (const auto known = restarted_calls().find(tid, registers)) return *known;
  std::array<std::uint8_t, 7> code{};  // b8 imm32 (mov eax, number), 0f 05 (syscall)
  if (TRY(kernel::read_memory(tid, registers.rip - code.size(), code.data(), code.size())) == code.size() &&
      code[0] == 0xb8 && code[5] == 0x0f && code[6] == 0x05) {
    std::uint32_t number = 0;
    std::memcpy(&number, &code[1], sizeof number);
    return static_cast<long>(number);
  }
  return fail(ErrorKind::refused, "thread {} sleeps in a restarted system call whose number can't be known; try again",
              tid.value);
}

/// The time that is left of a call with a restart block, as a deadline.
Result<Interrupted> describe_block(HostPid tid, const kernel::Registers& registers, const SleepMark& slept,
                                   const PodClock& clock) {
  Interrupted result{.how = "block", .number = static_cast<std::int64_t>(registers.orig_rax)};
  if (result.number == SYS_restart_syscall) result.number = TRY(number_before_restart(tid, registers));
  const std::int64_t now = clock.now();
  const std::int64_t began = slept.sleeping ? slept.began : now;
  const auto sleep_until = [&](RemoteAddress request, RemoteAddress remainder) -> Result<std::int64_t> {
    // The kernel has just written the remainder for the program, exact to the nanosecond. (Where both are the same
    // memory, too: sleep(3) does that.)
    if (remainder != 0) return now + nanoseconds(TRY(read_timespec(tid, remainder)));
    return began + nanoseconds(TRY(read_timespec(tid, request)));
  };
  switch (result.number) {
    case SYS_nanosleep:
      result.deadline = TRY(sleep_until(registers.rdi, registers.rsi));
      return result;
    case SYS_clock_nanosleep:
      result.clock = static_cast<std::int32_t>(registers.rdi);
      result.deadline = TRY(sleep_until(registers.rdx, registers.r10));
      return result;
    case SYS_poll:
      if (static_cast<std::int32_t>(registers.rdx) < 0) {
        result.how = "again";  // for ever: no time to carry over
        return result;
      }
      result.deadline = began + static_cast<std::int32_t>(registers.rdx) * millisecond;
      return result;
    case SYS_futex:
      if ((registers.rsi & FUTEX_CMD_MASK) != FUTEX_WAIT) {
        result.how = "again";  // absolute: the same call ends at the same moment
        return result;
      }
      result.deadline = began + nanoseconds(TRY(read_timespec(tid, registers.r10)));
      return result;
    default:
      return fail(ErrorKind::refused, "thread {} sleeps in system call {}, whose time can't be carried over", tid.value,
                  result.number);
  }
}

/// A call that shows EINTR although only we interrupted it.
Result<Interrupted> describe_leaked(HostPid tid, const kernel::Registers& registers, const SleepMark& slept,
                                    const PodClock& clock) {
  Interrupted result{.how = "no", .number = static_cast<std::int64_t>(registers.orig_rax)};
  const std::int64_t began = slept.sleeping ? slept.began : clock.now();
  switch (result.number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait: {
      const auto timeout = static_cast<std::int32_t>(registers.r10);
      result.how = timeout > 0 ? "shorter" : "again";
      if (timeout > 0) result.deadline = began + timeout * millisecond;
      return result;
    }
    case epoll_pwait2:
      result.how = registers.r10 != 0 ? "shorter" : "again";
      if (registers.r10 != 0) result.deadline = began + nanoseconds(TRY(read_timespec(tid, registers.r10)));
      return result;
    case SYS_io_uring_enter:
    case SYS_semop:
      result.how = "again";
      return result;
    default:
      break;
  }
  if (const auto* pointer = timeout_pointer(registers, result.number)) {
    result.how = "again";
    if (*pointer == 0) return result;
    const timespec timeout = TRY(read_timespec(tid, *pointer));
    result.how = "lent";
    result.deadline = began + nanoseconds(timeout);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&timeout);
    result.lent.assign(bytes, bytes + sizeof timeout);
    return result;
  }
  if (const int option = socket_timeout_option(result.number); option >= 0) {
    const Fd socket = TRY(descriptor_of(tid, static_cast<int>(registers.rdi)));
    timeval timeout{};
    socklen_t size = sizeof timeout;
    result.how = "again";
    if (::getsockopt(socket.get(), SOL_SOCKET, option, &timeout, &size) < 0 ||
        (timeout.tv_sec == 0 && timeout.tv_usec == 0))
      return result;
    result.how = "lent";
    result.deadline = began + nanoseconds({.tv_sec = timeout.tv_sec, .tv_nsec = timeout.tv_usec * 1000});
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&timeout);
    result.lent.assign(bytes, bytes + sizeof timeout);
  }
  return result;
}

/// The call that makes the restart block anew: the program's arguments, but for the time that is left.
Result<kernel::Registers> shortened_call(const kernel::Gadget& gadget, std::size_t slot, kernel::Tracee& thread,
                                         const Interrupted& call, const kernel::Registers& program, std::int64_t left) {
  kernel::Registers registers = program;
  registers.rip = gadget.syscall_instruction();
  registers.rax = static_cast<std::uint64_t>(call.number);
  registers.orig_rax = static_cast<std::uint64_t>(-1);
  if (call.number == SYS_poll) {
    // Up, so that it never ends too early; below a millisecond it must still be a timeout.
    registers.rdx = static_cast<std::uint64_t>((left + millisecond - 1) / millisecond);
    return registers;
  }
  const timespec time = to_timespec(left);
  const RemoteAddress where = gadget.area(slot);
  if (TRY(kernel::write_memory(thread.tid(), where, &time, sizeof time)) != sizeof time)
    return fail(ErrorKind::failed, "write into the gadget of thread {}", thread.tid().value);
  (call.number == SYS_nanosleep ? registers.rdi : call.number == SYS_futex ? registers.r10 : registers.rdx) = where;
  return registers;
}

/// `memory`: the process's, opened by the first of its threads that needs it.
Result<Loan> lend(kernel::Tracee& thread, const Interrupted& call, const kernel::Registers& registers,
                  std::int64_t left, std::shared_ptr<const kernel::MemoryFile>& memory) {
  const auto* pointer = timeout_pointer(registers, call.number);
  if (call.lent.size() != (pointer != nullptr ? sizeof(timespec) : sizeof(timeval)))
    return fail(ErrorKind::invalid, "a lent timeout has {} bytes", call.lent.size());
  Loan loan{.memory = {}, .where = 0, .socket = {}, .option = 0, .own = call.lent};
  if (pointer != nullptr) {
    if (!memory) memory = std::make_shared<kernel::MemoryFile>(TRY(kernel::MemoryFile::open(thread.tid())));
    loan.memory = memory;
    loan.where = *pointer;
    const timespec time = to_timespec(left);
    // process_vm_writev waits for a page that is fetched on reference, /proc/PID/mem doesn't; it writes where the
    // program can't.
    if (kernel::write_memory(thread.tid(), loan.where, &time, sizeof time).value_or(0) != sizeof time)
      TRY(memory->write(loan.where, &time, sizeof time));
    return loan;
  }
  loan.socket = TRY(descriptor_of(thread.tid(), static_cast<int>(registers.rdi)));
  loan.option = socket_timeout_option(call.number);
  // Zero would mean for ever.
  const timeval time{.tv_sec = left / second, .tv_usec = std::max<suseconds_t>(left % second / 1000, 1)};
  if (::setsockopt(loan.socket.get(), SOL_SOCKET, loan.option, &time, sizeof time) < 0)
    return fail_errno("set the timeout of thread {}'s socket {}", thread.tid().value, registers.rdi);
  return loan;
}

/// Field of /proc/thread-self/sched or of a thread's: "se.exec_start : 1234.567890" in ms.
Result<std::int64_t> exec_start(const std::string& sched) {
  const auto at = sched.find("se.exec_start");
  const auto colon = at == std::string::npos ? at : sched.find(':', at);
  double value = 0;
  if (colon == std::string::npos) return fail(ErrorKind::failed, "no se.exec_start in /proc/PID/sched");
  const char* begin = sched.data() + colon + 1;
  while (*begin == ' ') ++begin;
  if (std::from_chars(begin, sched.data() + sched.size(), value).ec != std::errc{})
    return fail(ErrorKind::failed, "malformed se.exec_start in /proc/PID/sched");
  return static_cast<std::int64_t>(value * 1e6);
}

/// A processor's scheduler clock against the pod's: our own figure there is fresh after a yield. Whatever comes between
/// makes the difference larger, so the least of a few is the best, and none is too small.
Result<std::int64_t> processor_offset(int processor, const PodClock& clock) {
  cpu_set_t before;
  if (::sched_getaffinity(0, sizeof before, &before) < 0) return fail_errno("read our own affinity");
  cpu_set_t there;
  CPU_ZERO(&there);
  CPU_SET(processor, &there);
  // Without the right to go there, where we are must do.
  (void)::sched_setaffinity(0, sizeof there, &there);
  std::int64_t least = INT64_MAX;
  Result<void> outcome;
  constexpr int tries = 3;
  for (int i = 0; i < tries && outcome; ++i) {
    ::sched_yield();
    const Fd file(::openat(kernel::proc_directory(), "thread-self/sched", O_RDONLY | O_CLOEXEC));
    char text[4096] = {};
    if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) {
      outcome = fail_errno("read /proc/thread-self/sched");
      break;
    }
    const auto start = exec_start(text);
    if (start)
      least = std::min(least, clock.now() - *start);
    else
      outcome = std::unexpected(start.error());
  }
  (void)::sched_setaffinity(0, sizeof before, &before);
  TRY(outcome);
  return least;
}

}  // namespace

Result<SleepMark> SleepClock::mark(HostPid tid) {
  SleepMark result;
  const std::string stat = TRY(kernel::read_file(tid, "stat"));
  // After "(name)": the state is the first field, the processor the 37th.
  constexpr int processor_field = 37;
  std::istringstream fields(stat.substr(std::min(stat.rfind(')'), stat.size() - 1) + 1));
  std::string field;
  for (int i = 1; i <= processor_field && fields >> field; ++i)
    if (i == 1) result.sleeping = field == "S";
  if (!result.sleeping) return result;
  const int processor = std::atoi(field.c_str());
  auto offset = offsets_.find(processor);
  if (offset == offsets_.end()) offset = offsets_.emplace(processor, TRY(processor_offset(processor, clock_))).first;
  result.began = TRY(exec_start(TRY(kernel::read_file(tid, "sched")))) + offset->second;
  result.began = std::min(result.began, clock_.now());
  return result;
}

Result<Interrupted> describe(kernel::Tracee& thread, const kernel::Registers& registers, const SleepMark& slept,
                             const PodClock& clock) {
  // Whatever it is in, it isn't what was restarted once.
  if (registers.orig_rax != SYS_restart_syscall) restarted_calls().forget(thread.tid());
  if (static_cast<std::int64_t>(registers.orig_rax) < 0) return Interrupted{};
  switch (result_of(registers)) {
    case restart_block:
      return describe_block(thread.tid(), registers, slept, clock);
    case -EINTR:
      return describe_leaked(thread.tid(), registers, slept, clock);
    case restart_sys:
    case restart_nointr:
    case restart_nohand:
    default:
      return Interrupted{};
  }
}

std::array<Touched, 2> touched(const Interrupted& call, const kernel::Registers& registers) {
  constexpr std::uint64_t pollfd_size = 8, most_pollfds = 1 << 20;
  if (call.how == "lent") {
    const auto* pointer = timeout_pointer(registers, call.number);
    return {Touched{pointer == nullptr ? 0 : *pointer, pointer == nullptr ? 0 : sizeof(timespec)}, Touched{}};
  }
  if (call.how != "block") return {};
  switch (call.number) {
    case SYS_poll:
      return {Touched{registers.rdi, std::min<std::uint64_t>(registers.rsi, most_pollfds) * pollfd_size}, Touched{}};
    case SYS_futex:
      return {Touched{registers.rdi, 4}, Touched{}};
    case SYS_nanosleep:
      return {Touched{registers.rsi, registers.rsi == 0 ? 0 : sizeof(timespec)}, Touched{}};
    case SYS_clock_nanosleep:
      return {Touched{registers.r10, registers.r10 == 0 ? 0 : sizeof(timespec)}, Touched{}};
    default:
      return {};
  }
}

bool sleeps_with_block(HostPid tid) {
  // "number argument …", in decimal and in hexadecimal, or "running".
  std::istringstream words(kernel::read_file(tid, "syscall").value_or(""));
  std::int64_t number = -1;
  std::array<std::uint64_t, 4> arguments{};
  if (!(words >> number)) return false;
  for (auto& argument : arguments)
    if (!(words >> std::hex >> argument)) return false;
  switch (number) {
    case SYS_nanosleep:
    case SYS_restart_syscall:
      return true;
    case SYS_clock_nanosleep:
      return (arguments[1] & TIMER_ABSTIME) == 0;
    case SYS_poll:
      return static_cast<std::int32_t>(arguments[2]) >= 0;
    case SYS_futex:
      return (arguments[1] & FUTEX_CMD_MASK) == FUTEX_WAIT && arguments[3] != 0;
    default:
      return false;
  }
}

Result<void> park(kernel::Gadget& gadget, kernel::Tracee& thread) {
  TRY(thread.set_signal_mask(~0ULL));
  auto registers = TRY(thread.registers());
  registers.rip = gadget.syscall_instruction();
  registers.rax = SYS_getpid;
  registers.orig_rax = ~0ULL;
  TRY(thread.set_registers(registers));
  TRY(thread.resume_to_syscall());
  const auto status = TRY(thread.wait(kernel::Tracee::patience_for_own));
  if (status.stopped() && status.event() == 0 && status.signal() == (SIGTRAP | 0x80)) return {};
  return fail(ErrorKind::failed, "thread {} doesn't come to where a call begins", thread.tid().value);
}

namespace {

constexpr std::uint64_t syscall_size = 2;

bool has_block(const Rearming& one) {
  return one.call->how == "block";
}

std::int64_t time_left(const Interrupted& call, const PodClock& clock) {
  // A deadline that has passed still lets the call look once, and end as a timeout.
  return std::max<std::int64_t>(call.deadline - clock.now(), 1);
}

/// All but "block": registers and what is lent.
Result<void> rearm_at_rest(Rearming& one, const PodClock& clock, std::shared_ptr<const kernel::MemoryFile>& memory) {
  const Interrupted& call = *one.call;
  if (call.how == "no") return {};
  const std::int64_t left = time_left(call, clock);
  kernel::Registers& registers = one.registers;
  registers.rax = static_cast<std::uint64_t>(restart_nohand);
  registers.orig_rax = static_cast<std::uint64_t>(call.number);
  if (call.how == "shorter") {
    // epoll_pwait2 differs from epoll_pwait only in where its time stands: this way it needs no memory of ours.
    if (call.number == epoll_pwait2) registers.orig_rax = SYS_epoll_pwait;
    registers.r10 =
        static_cast<std::uint64_t>(std::min<std::int64_t>((left + millisecond - 1) / millisecond, INT32_MAX));
  } else if (call.how == "lent") {
    one.loan = TRY(lend(*one.thread, call, registers, left, memory));
  } else if (call.how != "again") {
    return fail(ErrorKind::invalid, "unknown way \"{}\" to restart a system call", call.how);
  }
  return {};
}

/// A thread that stands where a call begins does the call of these registers next, or none.
Result<void> go_from_entry(Rearming& one, kernel::Registers registers, std::int64_t number) {
  registers.orig_rax = static_cast<std::uint64_t>(number);
  TRY(one.thread->set_registers(registers));
  TRY(one.thread->interrupt());
  return one.thread->resume();
}

/// Begins calls in up to `Gadget::slots` threads and interrupts them before they can sleep, so that they leave their
/// restart blocks in the kernel. Their threads go through this at the same time: each has to be waited for twice, or
/// once where it is parked.
Result<void> remake_blocks(kernel::Gadget& gadget, std::span<Rearming*> blocks, const PodClock& clock) {
  const auto each = [&](auto step) -> Result<void> {
    for (std::size_t slot = 0; slot < blocks.size(); ++slot) TRY(step(*blocks[slot], slot));
    return {};
  };
  TRY(each([&](Rearming& one, std::size_t slot) -> Result<void> {
    if (!has_block(one)) {
      // Parked in vain: it goes on to where it makes no call.
      return go_from_entry(one, TRY(one.thread->registers()), -1);
    }
    const auto left = time_left(*one.call, clock);
    auto call = TRY(shortened_call(gadget, slot, *one.thread, *one.call, one.registers, left));
    if (one.parked) {
      call.rip += syscall_size;
      return go_from_entry(one, call, one.call->number);
    }
    TRY(one.thread->set_registers(call));
    // Stopped at the entry of the call, an interrupt is pending when it begins: no race, and no time passes.
    return one.thread->resume_to_syscall();
  }));
  TRY(each([](Rearming& one, std::size_t) -> Result<void> {
    if (one.parked) return {};
    if (!TRY(one.thread->wait(kernel::Tracee::patience_for_own)).stopped())
      return fail(ErrorKind::gone, "thread {} died while a call was restarted", one.thread->tid().value);
    TRY(one.thread->interrupt());
    return one.thread->resume();
  }));
  return each([](Rearming& one, std::size_t) -> Result<void> {
    TRY(one.thread->wait_stop(kernel::Tracee::patience_for_own));
    one.parked = false;
    if (!has_block(one)) return {};
    // An answer at once is the program's answer: a futex whose word has changed, a descriptor that is ready.
    one.registers.rax = static_cast<std::uint64_t>(result_of(TRY(one.thread->registers())));
    one.registers.orig_rax = static_cast<std::uint64_t>(one.call->number);
    restarted_calls().remember(one.thread->tid(), one.registers, one.call->number);
    return {};
  });
}

}  // namespace

Result<void> rearm(kernel::Gadget& gadget, std::span<Rearming> threads, const PodClock& clock) {
  std::vector<Rearming*> blocks;
  std::shared_ptr<const kernel::MemoryFile> memory;
  for (auto& one : threads) {
    if (!has_block(one)) TRY(rearm_at_rest(one, clock, memory));
    if (has_block(one) || one.parked) blocks.push_back(&one);
  }
  for (std::size_t at = 0; at < blocks.size(); at += kernel::Gadget::slots)
    TRY(remake_blocks(gadget, std::span(blocks).subspan(at, std::min(blocks.size() - at, kernel::Gadget::slots)),
                      clock));
  return {};
}

Result<Rearmed> rearm(kernel::Gadget& gadget, kernel::Tracee& thread, const Interrupted& call,
                      const kernel::Registers& registers, const PodClock& clock) {
  Rearming one{&thread, &call, registers};
  TRY(rearm(gadget, std::span(&one, 1), clock));
  return Rearmed{one.registers, std::move(one.loan)};
}

Result<void> give_back(HostPid tid, const Loan& loan) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  // The kernel has copied the timeout when the call sleeps; when another call or none is made, it has ended.
  while (std::chrono::steady_clock::now() < until) {
    const auto now = kernel::read_file(tid, "syscall");
    if (!now || !now->starts_with("running")) break;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  if (loan.memory) return loan.memory->write(loan.where, loan.own.data(), loan.own.size());
  if (::setsockopt(loan.socket.get(), SOL_SOCKET, loan.option, loan.own.data(),
                   static_cast<socklen_t>(loan.own.size())) < 0)
    return fail_errno("give back the timeout of a socket of thread {}", tid.value);
  return {};
}

}  // namespace godwit::objects
