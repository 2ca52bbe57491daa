#pragma once

#include <functional>
#include <memory>

#include "base/result.hpp"
#include "pod/namespaces.hpp"

namespace godwit::pod {

/// A thread of ours that has entered a pod's net, mount, ipc and uts namespaces (root directory included) and does
/// there what it is given, in order. It shares our descriptor table, so what it opens is ours. It never forks.
class Workshop {
 public:
  static Result<std::unique_ptr<Workshop>> open(const Namespaces&);
  ~Workshop();  ///< finishes what was given, then ends the thread

  /// Runs `work` there and waits for it.
  Result<void> run(const std::function<Result<void>()>& work);
  /// Begins `work` and returns; `wait` gives the first error of all that was begun.
  void begin(std::function<Result<void>()> work);
  Result<void> wait();

 private:
  struct Parts;
  explicit Workshop(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
