#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

namespace godwit::node {

/// Something that is said again and again, ever less often: it may be lost, and nobody answers it. After 0.1 s, 0.3 s,
/// and so on for two minutes: a switch that hasn't heard where a pod is sends what is for it to where it was.
class Repetition {
 public:
  void begin() {
    pause_ = first;
    next_ = Clock::now() + pause_;
  }
  /// Once for each time that has come.
  bool due() {
    if (!next_ || Clock::now() < *next_) return false;
    pause_ *= 3;
    next_ = pause_ <= last ? std::optional(Clock::now() + pause_) : std::nullopt;
    return true;
  }
  /// Until the next time; a day when there is none.
  [[nodiscard]] int within_ms() const {
    if (!next_) return std::chrono::milliseconds(std::chrono::hours(24)).count();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next_ - Clock::now());
    return static_cast<int>(std::max<std::chrono::milliseconds::rep>(0, left.count()));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds first{100}, last{90'000};
  std::chrono::milliseconds pause_{};
  std::optional<Clock::time_point> next_;
};

}  // namespace godwit::node
