#pragma once

#include <chrono>

namespace godwit::kernel {

/// A time limit for system calls that have none (waitpid): while this object lives and once the limit is over, calls of
/// this thread that block are interrupted with EINTR, again and again.
///
/// Setting it costs an atomic store; a timer would cost 2 us and more each time. A thread that sleeps when there is
/// nothing to watch keeps the time, to some 20 ms, and sends SIGRTMAX - 3, whose handler does nothing.
class WaitLimit {
 public:
  explicit WaitLimit(std::chrono::nanoseconds limit);
  ~WaitLimit();
  WaitLimit(const WaitLimit&) = delete;
  WaitLimit& operator=(const WaitLimit&) = delete;

  [[nodiscard]] bool over() const;

  /// Makes the thread that keeps the time, while there is memory for it: a thread that first needs it later, and can't
  /// have it, has no limit. False when there is none now.
  static bool prepare();

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace godwit::kernel
