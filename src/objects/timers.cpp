#include "objects/timers.hpp"

#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <sstream>

#include "kernel/kernel_state.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

constexpr std::uint64_t prctl_timer_restore_ids = 77;  // PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15
constexpr std::int64_t second = 1'000'000'000;
// What CLOCK_THREAD_CPUTIME_ID becomes in the kernel: thread 0, that is itself. Clocks that name a thread say its id in
// the pod and stay valid.
constexpr std::int32_t own_thread_clock = -2;
constexpr std::size_t most_timers = 65'536;

struct KernelSigevent {  // struct sigevent, 64 bytes, with its union spelt out
  std::uint64_t value;
  std::int32_t signal, notify, thread;
  std::array<std::int32_t, 11> padding;
};
static_assert(sizeof(KernelSigevent) == 64);

std::int64_t nanoseconds(const timespec& time) {
  return time.tv_sec * second + time.tv_nsec;
}
timespec to_timespec(std::int64_t time) {
  return {.tv_sec = time / second, .tv_nsec = time % second};
}

/// A thread's id in its own, innermost namespace.
Result<PodPid> pod_id(HostPid tid) {
  const auto status = TRY(kernel::read_status(tid));
  if (status.ns_pid.empty()) return fail(ErrorKind::failed, "no NSpid of thread {}", tid.value);
  return PodPid{status.ns_pid.back()};
}

/// "notify: signal/tid.123", "none/pid.0", "thread/pid.7"
Result<void> parse_notify(PosixTimer& timer, const std::string& text) {
  const auto slash = text.find('/');
  const auto dot = text.find('.', slash);
  if (slash == std::string::npos || dot == std::string::npos)
    return fail(ErrorKind::failed, "malformed timer notification \"{}\"", text);
  const std::string how = text.substr(0, slash);
  timer.notify = how == "none" ? SIGEV_NONE : how == "thread" ? SIGEV_THREAD : SIGEV_SIGNAL;
  if (text.compare(slash + 1, dot - slash - 1, "tid") == 0) {
    timer.notify |= SIGEV_THREAD_ID;
    timer.thread = TRY(pod_id(HostPid{std::atoi(text.c_str() + dot + 1)}));
  }
  return {};
}

bool counts_processor_time(std::int32_t clock) {
  // Negative ids are the CPU clocks of some process or thread.
  return clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
}

bool counts_overruns(const PosixTimer& timer) {
  return timer.interval > 0 && timer.notify != SIGEV_NONE && !counts_processor_time(timer.clock);
}

}  // namespace

Result<void> TimersCapture::look(HostPid process) {
  process_ = process;
  std::istringstream text(TRY(kernel::read_file(process, "timers")));
  std::string line;
  while (std::getline(text, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, colon);
    const char* value = line.c_str() + std::min(colon + 2, line.size());
    if (key == "ID") {
      if (timers_.posix.size() == most_timers)
        return fail(ErrorKind::refused, "process {} has more than {} timers", process.value, most_timers);
      timers_.posix.push_back({.id = std::atoi(value)});
      continue;
    }
    if (timers_.posix.empty()) continue;
    PosixTimer& timer = timers_.posix.back();
    if (key == "signal") {
      char* end = nullptr;
      timer.signal = static_cast<std::int32_t>(std::strtol(value, &end, 10));
      if (*end == '/') timer.value = std::strtoull(end + 1, nullptr, 16);
    } else if (key == "notify") {
      TRY(parse_notify(timer, value));
    } else if (key == "ClockID") {
      timer.clock = std::atoi(value);
      if (timer.clock == own_thread_clock && TRY(kernel::list_threads(process)).size() > 1)
        return fail(ErrorKind::refused,
                    "timer {} of process {} counts the CPU time of the thread that made it, which can't be known",
                    timer.id, process.value);
    }
  }
  // The kernel lists the newest first.
  std::ranges::reverse(timers_.posix);
  if (!timers_.posix.empty()) kernel::prepare_to_read_kernel_state();
  return {};
}

void TimersCapture::ask(kernel::Batch& batch) {
  settings_ = batch.space((timers_.posix.size() * sizeof(itimerspec)) + 3 * sizeof(itimerval));
  RemoteAddress where = settings_;
  for (std::uint64_t which = ITIMER_REAL; which <= ITIMER_PROF; ++which, where += sizeof(itimerval))
    calls_.push_back(batch.call(SYS_getitimer, {which, where}));
  for (const PosixTimer& timer : timers_.posix) {
    calls_.push_back(batch.call(SYS_timer_gettime, {static_cast<std::uint64_t>(timer.id), where}));
    where += sizeof(itimerspec);
  }
}

Result<Timers> TimersCapture::take(const kernel::Batch& batch, const PodClock& clock) {
  for (const auto call : calls_)
    if (batch.result(call) < 0) return fail(ErrorKind::failed, "read a timer: error {}", -batch.result(call));
  timers_.taken = clock.now();
  RemoteAddress where = settings_;
  timers_.interval.clear();
  for (int which = ITIMER_REAL; which <= ITIMER_PROF; ++which, where += sizeof(itimerval)) {
    const auto setting = batch.read<itimerval>(where);
    timers_.interval.push_back({setting.it_value.tv_sec * 1'000'000 + setting.it_value.tv_usec,
                                setting.it_interval.tv_sec * 1'000'000 + setting.it_interval.tv_usec});
  }
  for (PosixTimer& timer : timers_.posix) {
    const auto setting = batch.read<itimerspec>(where);
    timer.left = nanoseconds(setting.it_value);
    timer.interval = nanoseconds(setting.it_interval);
    where += sizeof(itimerspec);
  }
  count_overruns();
  return timers_;
}

/// timer_gettime has just added what had passed until then.
void TimersCapture::count_overruns() {
  if (std::ranges::none_of(timers_.posix, counts_overruns)) return;
  const auto pidfd = kernel::pidfd_open(process_, true);
  if (!pidfd) return;
  // Where the kernel can't be read, the signal moves as it is queued and the count begins anew.
  const auto known = kernel::timer_overruns(pidfd->get());
  if (!known || known->size() != timers_.posix.size()) return;
  for (PosixTimer& timer : timers_.posix)
    if (const auto at = known->find(timer.id); counts_overruns(timer) && at != known->end())
      timer.overruns = std::clamp<std::int64_t>(at->second, -1, INT32_MAX);
}

void restore_timers(kernel::Batch& batch, const Timers& timers, const PodClock& clock) {
  const std::int64_t passed = std::max<std::int64_t>(clock.now() - timers.taken, 0);
  for (std::size_t which = 0; which < std::min<std::size_t>(timers.interval.size(), 3); ++which) {
    const auto& timer = timers.interval[which];
    std::int64_t left = timer.left;
    // What was due meanwhile fires at once.
    // One that has fired is armed anew when its signal is taken; 0 would be none.
    if (which == ITIMER_REAL && left == 0) left = timer.interval;
    if (which == ITIMER_REAL && timer.left != 0) left = std::max<std::int64_t>(left - passed / 1000, 1);
    const itimerval setting{.it_interval = {timer.interval / 1'000'000, timer.interval % 1'000'000},
                            .it_value = {left / 1'000'000, left % 1'000'000}};
    batch.must("set an interval timer", SYS_setitimer, {which, batch.value(setting), 0});
  }
  if (timers.posix.empty()) return;
  batch.must("choose timer ids", SYS_prctl, {prctl_timer_restore_ids, 1});
  for (const PosixTimer& timer : timers.posix) {
    const KernelSigevent event{.value = timer.value,
                               .signal = timer.signal,
                               .notify = timer.notify,
                               .thread = timer.thread.value,
                               .padding = {}};
    std::int64_t left = timer.left;
    if (left != 0 && !counts_processor_time(timer.clock)) left = std::max<std::int64_t>(left - passed, 1);
    itimerspec setting{.it_interval = to_timespec(timer.interval), .it_value = to_timespec(left)};
    std::uint64_t how = 0;
    if (timer.overruns >= 0 && counts_overruns(timer)) {
      // Armed for when it expired: its signal is queued at once, and the kernel counts from there when it is taken.
      const std::int64_t taken = timers.taken + clock.now(timer.clock) - clock.now();
      const std::int64_t expired = taken + timer.left - (timer.overruns + 1) * timer.interval;
      setting.it_value = to_timespec(std::max<std::int64_t>(expired, 1));
      how = TIMER_ABSTIME;
    }
    const auto id = static_cast<std::uint64_t>(timer.id);
    batch.must("create a timer", SYS_timer_create,
               {static_cast<std::uint64_t>(timer.clock), batch.value(event), batch.value(timer.id)});
    if (left != 0 || timer.interval != 0)
      batch.must("arm a timer", SYS_timer_settime, {id, how, batch.value(setting), 0});
  }
  batch.must("no longer choose timer ids", SYS_prctl, {prctl_timer_restore_ids, 0});
}

bool comes_again(const Timers& timers, const siginfo_t& info) {
  if (info.si_code != SI_TIMER) return false;
  const auto timer = std::ranges::find(timers.posix, info.si_timerid, &PosixTimer::id);
  return timer != timers.posix.end() && timer->overruns >= 0 && counts_overruns(*timer);
}

}  // namespace godwit::objects
