#include "kernel/priority.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "kernel/procfs.hpp"

namespace godwit::kernel {

namespace {

int without_flags(int policy) {
  return policy & ~SCHED_RESET_ON_FORK;
}

bool is_high_enough(const Policy& policy, int priority) {
  constexpr int sched_deadline = 6;
  const int kind = without_flags(policy.policy);
  return kind == sched_deadline || ((kind == SCHED_FIFO || kind == SCHED_RR) && policy.priority >= priority);
}

}  // namespace

Result<Policy> policy_of(HostPid tid) {
  Policy found;
  sched_param parameters{};
  found.policy = ::sched_getscheduler(tid.value);
  if (found.policy < 0 || ::sched_getparam(tid.value, &parameters) < 0)
    return fail_errno("read the scheduling policy of thread {}", tid.value);
  found.priority = parameters.sched_priority;
  return found;
}

Result<std::uint64_t> timer_slack_of(HostPid tid) {
  const std::string text = TRY(read_file(tid, "timerslack_ns"));
  return std::strtoull(text.c_str(), nullptr, 10);
}

Result<void> set_timer_slack(HostPid tid, std::uint64_t nanoseconds) {
  const Fd file = TRY(open_file(tid, "timerslack_ns", O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(nanoseconds);
  if (::write(file.get(), text.data(), text.size()) < 0)
    return fail_errno("set the timer slack of thread {}", tid.value);
  return {};
}

Result<void> set_policy(HostPid tid, const Policy& wanted) {
  sched_param parameters{};
  parameters.sched_priority = wanted.priority;
  if (::sched_setscheduler(tid.value, wanted.policy, &parameters) < 0)
    return fail_errno("set the scheduling policy of thread {}", tid.value);
  return {};
}

void work_in_background(HostPid tid) {
  cpu_set_t allowed;
  if (::sched_getaffinity(tid.value, sizeof allowed, &allowed) == 0) {
    int leave = CPU_COUNT(&allowed) / 2;
    for (int cpu = 0; cpu < CPU_SETSIZE && leave > 0; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      CPU_CLR(cpu, &allowed);
      --leave;
    }
    (void)::sched_setaffinity(tid.value, sizeof allowed, &allowed);
  }
  constexpr std::uint64_t longest = 100'000'000;  // ns
  struct {
    std::uint32_t size = 48, policy = SCHED_OTHER;
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime = longest, deadline = 0, period = 0;
  } attributes;
  static_assert(sizeof attributes == 48);
  // An older kernel takes no notice of the slice.
  (void)::syscall(SYS_sched_setattr, tid.value, &attributes, 0);
}

InheritingMutex::InheritingMutex() {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  pthread_mutex_init(&mutex_, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

RaisedPriority RaisedPriority::look(HostPid tid, int priority, int flags) {
  RaisedPriority thread;
  thread.tid_ = tid;
  const auto found = policy_of(tid);
  if (!found || is_high_enough(*found, priority)) return thread;
  thread.before_ = *found;
  thread.before_.timer_slack = timer_slack_of(tid).value_or(0);
  thread.priority_ = priority;
  thread.flags_ = flags | (found->policy & SCHED_RESET_ON_FORK);
  return thread;
}

void RaisedPriority::raise() {
  if (priority_ == 0 || raised_) return;
  raised_ = set_policy(tid_, {SCHED_FIFO | flags_, priority_}).has_value();
}

RaisedPriority& RaisedPriority::operator=(RaisedPriority&& other) noexcept {
  if (this == &other) return *this;
  restore();
  tid_ = other.tid_;
  priority_ = other.priority_;
  flags_ = other.flags_;
  before_ = other.before_;
  raised_ = std::exchange(other.raised_, false);
  return *this;
}

void RaisedPriority::restore() {
  if (!std::exchange(raised_, false)) return;
  (void)set_policy(tid_, before_);
  if (before_.timer_slack != 0) (void)set_timer_slack(tid_, before_.timer_slack);
}

}  // namespace godwit::kernel
