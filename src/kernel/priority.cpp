#include "kernel/priority.hpp"

#include <sched.h>

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

Result<void> set_policy(HostPid tid, const Policy& wanted) {
  sched_param parameters{};
  parameters.sched_priority = wanted.priority;
  if (::sched_setscheduler(tid.value, wanted.policy, &parameters) < 0)
    return fail_errno("set the scheduling policy of thread {}", tid.value);
  return {};
}

RaisedPriority::RaisedPriority(HostPid tid, int priority) : tid_(tid) {
  const auto found = policy_of(tid);
  if (!found || is_high_enough(*found, priority)) return;
  before_ = *found;
  raised_ = set_policy(tid, {SCHED_FIFO | (before_.policy & SCHED_RESET_ON_FORK), priority}).has_value();
}

RaisedPriority& RaisedPriority::operator=(RaisedPriority&& other) noexcept {
  if (this == &other) return *this;
  restore();
  tid_ = other.tid_;
  before_ = other.before_;
  raised_ = std::exchange(other.raised_, false);
  return *this;
}

void RaisedPriority::restore() {
  if (std::exchange(raised_, false)) (void)set_policy(tid_, before_);
}

}  // namespace godwit::kernel
