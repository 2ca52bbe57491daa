#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

namespace godwit::sim {

/// True time, which no node knows.
using Us = std::chrono::microseconds;

/// What will happen, in its order.
class Events {
 public:
  using Task = std::function<void()>;

  void after(Us delay, Task task) {
    heap_.push_back({now_ + std::max(delay, Us(0)), number_++, std::move(task)});
    std::ranges::push_heap(heap_, later);
  }
  /// Time goes on to the next event, and it happens. False: there is none.
  bool step() {
    if (heap_.empty()) return false;
    std::ranges::pop_heap(heap_, later);
    Entry next = std::move(heap_.back());
    heap_.pop_back();
    now_ = next.at;
    next.task();
    ++done_;
    return true;
  }
  [[nodiscard]] Us now() const { return now_; }
  [[nodiscard]] std::uint64_t done() const { return done_; }

 private:
  struct Entry {
    Us at;
    std::uint64_t number;  ///< of two at one time, the one that was asked for first
    Task task;
  };
  static bool later(const Entry& a, const Entry& b) { return std::tie(a.at, a.number) > std::tie(b.at, b.number); }

  std::vector<Entry> heap_;
  Us now_{0};
  std::uint64_t number_ = 0, done_ = 0;
};

}  // namespace godwit::sim
