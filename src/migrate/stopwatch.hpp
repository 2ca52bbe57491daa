#pragma once

#include <vector>

#include "migrate/freeze.hpp"
#include "migrate/report.hpp"

namespace godwit::migrate {

/// Itemises a stretch of time: each `lap` names what has gone by since the last one.
class Stopwatch {
 public:
  Stopwatch() : begin_(now_ns()), last_(begin_) {}
  void lap(std::string name) {
    const auto now = now_ns();
    spans_.push_back({std::move(name), static_cast<std::uint64_t>(now - last_) / 1000});
    last_ = now;
  }
  [[nodiscard]] std::uint64_t total_us() const { return static_cast<std::uint64_t>(now_ns() - begin_) / 1000; }
  [[nodiscard]] std::vector<Span>& spans() { return spans_; }
  void restart() {
    begin_ = last_ = now_ns();
    spans_.clear();
  }

 private:
  std::int64_t begin_, last_;
  std::vector<Span> spans_;
};

}  // namespace godwit::migrate
