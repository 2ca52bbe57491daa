#pragma once

#include <pthread.h>

#include <cstdint>
#include <utility>

#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::kernel {

/// What a thread's policy was before it was raised: two numbers, to be written down before. Threads of a process whose
/// daemon dies stay raised until somebody puts this back.
struct Policy {
  int policy = 0;                 ///< SCHED_*, with SCHED_RESET_ON_FORK as sched_getscheduler(2) gives it
  int priority = 0;               ///< of SCHED_FIFO and SCHED_RR
  std::uint64_t timer_slack = 0;  ///< ns; a thread that is raised loses it (Linux 6.10)
  bool operator==(const Policy&) const = default;
};

Result<Policy> policy_of(HostPid tid);
/// Timer slack in nanoseconds (/proc/TID/timerslack_ns); 0 for a real-time thread.
Result<std::uint64_t> timer_slack_of(HostPid tid);
Result<void> set_timer_slack(HostPid tid, std::uint64_t nanoseconds);
/// Nice and a slice of the thread's own (sched_setattr) stay as they are: that call would reset the slice.
Result<void> set_policy(HostPid tid, const Policy&);

/// For a thread of ours that works in the background. It keeps to the upper half of the processors that it may run on,
/// so that whoever is to be disturbed least finds one without it (a share of the processors is divided between groups
/// first: a nice value counts only within one). And there whoever wakes up runs at once, not at the end of the thread's
/// slice (a slice longer than others', sched_setattr(2); Linux 6.12).
void work_in_background(HostPid tid);

/// A mutex whose holder runs at the priority of the highest thread that waits for it. Lockable.
class InheritingMutex {
 public:
  InheritingMutex();
  ~InheritingMutex() { pthread_mutex_destroy(&mutex_); }
  InheritingMutex(const InheritingMutex&) = delete;
  InheritingMutex& operator=(const InheritingMutex&) = delete;
  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }
  bool try_lock() { return pthread_mutex_trylock(&mutex_) == 0; }

 private:
  pthread_mutex_t mutex_{};
};

/// A thread in SCHED_FIFO for as long as this object lives: steps of the freeze run in the target at its own priority,
/// and with other load they would take milliseconds instead of microseconds. Only for the freeze itself, and taken back
/// before a thread is killed: everything at that priority, exit_mmap included, keeps others off its processor.
///
/// A daemon that may not (a container, RT_GROUP_SCHED without a share) goes on without: `raised` is false. A thread
/// that is at this priority already, above it, or in SCHED_DEADLINE, is left alone.
class RaisedPriority {
 public:
  RaisedPriority() = default;
  RaisedPriority(HostPid tid, int priority) : RaisedPriority(look(tid, priority)) { raise(); }
  /// Reads what the thread has now, and leaves it. To be raised when the time comes: with one system call. `flags`:
  /// SCHED_RESET_ON_FORK, when what it makes meanwhile isn't to inherit that.
  static RaisedPriority look(HostPid tid, int priority, int flags = 0);
  RaisedPriority(RaisedPriority&& other) noexcept
      : tid_(other.tid_),
        priority_(other.priority_),
        flags_(other.flags_),
        before_(other.before_),
        raised_(std::exchange(other.raised_, false)) {}
  RaisedPriority& operator=(RaisedPriority&& other) noexcept;
  RaisedPriority(const RaisedPriority&) = delete;
  RaisedPriority& operator=(const RaisedPriority&) = delete;
  ~RaisedPriority() { restore(); }

  void raise();
  [[nodiscard]] bool raised() const { return raised_; }
  /// False for a thread that is left alone.
  [[nodiscard]] bool can_be_raised() const { return priority_ > 0; }
  [[nodiscard]] HostPid thread() const { return tid_; }
  [[nodiscard]] int raised_to() const { return priority_; }
  [[nodiscard]] const Policy& before() const { return before_; }
  /// Puts the old policy back, now. A thread that has died is nothing to restore.
  void restore();

 private:
  HostPid tid_{};
  int priority_ = 0;  ///< to be raised to; 0: not at all
  int flags_ = 0;
  Policy before_;
  bool raised_ = false;
};

}  // namespace godwit::kernel
