#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace godwit::node {

/// Which of a pod's executions somebody reads. One that nobody does for a while is forsaken: whoever has started it is
/// gone, and didn't say so. Thread-safe.
class Attendance {
 public:
  /// There is such an execution.
  void know(const std::string& id);
  void forget(const std::string& id);
  [[nodiscard]] bool empty() const;
  /// Those that nobody has read for so long.
  [[nodiscard]] std::vector<std::string> forsaken(std::chrono::seconds patience) const;

  /// Somebody reads it, in this scope.
  class Reader {
   public:
    Reader(Attendance&, std::string id);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    Attendance& attendance_;
    const std::string id_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    int readers = 0;
    Clock::time_point since = Clock::now();  ///< when the last one has left
  };
  void count(const std::string& id, int change);

  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

}  // namespace godwit::node
