#pragma once

#include <chrono>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/tracee.hpp"
#include "migrate/tree.hpp"

namespace godwit::migrate {

/// A stopped thread of the pod.
struct FrozenThread {
  ThreadIds ids;
  kernel::Tracee tracee;
};

/// A process of the pod with all its threads stopped. A zombie has none.
struct FrozenProcess {
  ProcessIds ids;
  std::vector<FrozenThread> threads;
};

/// Stops every thread below `init` and returns them, parents before children. A vfork parent can't be stopped before its child is through: everything is let
/// go and tried again, until `limit` is over (`busy`). `stopped_at` is when the first thread was asked to stop (CLOCK_MONOTONIC, ns).
/// `known` is what was there a moment ago: those are stopped first, before anything is looked for.
Result<std::vector<FrozenProcess>> freeze_all(HostPid init, const std::vector<ProcessIds>& known, std::chrono::milliseconds limit,
                                              std::int64_t& stopped_at);

/// Lets everything go on.
void thaw_all(std::vector<FrozenProcess>& frozen);

/// CLOCK_MONOTONIC of this node in nanoseconds.
[[nodiscard]] std::int64_t now_ns();

}  // namespace godwit::migrate
