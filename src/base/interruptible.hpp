#pragma once

#include <atomic>
#include <utility>

namespace godwit {

/// While it lives, what its thread waits for with `wait_for`, under whatever calls, ends as `cancelled` soon after the
/// flag is set (within some hundredths of a second).
class Interruptible {
 public:
  explicit Interruptible(const std::atomic<bool>& cancelled) : before_(std::exchange(flag_, &cancelled)) {}
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  ~Interruptible() { flag_ = before_; }

  /// The flag of this thread; null: it waits as long as it takes.
  static const std::atomic<bool>* flag() { return flag_; }

 private:
  inline static thread_local const std::atomic<bool>* flag_ = nullptr;
  const std::atomic<bool>* before_;
};

}  // namespace godwit
