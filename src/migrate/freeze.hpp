#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/priority.hpp"
#include "kernel/tracee.hpp"
#include "migrate/tree.hpp"
#include "pod/raised_threads.hpp"

namespace godwit::migrate {

/// SCHED_FIFO, for the freeze: we above the pod's threads. Steps of ours inside a thread run at the thread's own
/// priority: with other load, milliseconds instead of microseconds. The pod's init, which lets them down should we die,
/// gets a processor before them.
inline constexpr int daemon_priority = 30, init_priority = 25, thread_priority = 20;

/// What the pod's init is told of a thread before it is raised.
pod::RaisedThread told_of(PodPid tid, const kernel::RaisedPriority&);

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

/// What a pod was a moment ago.
struct Known {
  std::vector<ProcessIds> processes;
  PodPid last_pid;  ///< the last number given out in it, read before the processes were
};

/// What the freeze needs from its caller.
struct FreezeHooks {
  /// The number given out last in the pod, now.
  std::function<Result<PodPid>()> last_pid;
  /// Every known thread is seized, which it doesn't notice; from here on they are stopped.
  std::function<Result<void>()> begin;
  /// A thread has been asked to stop and runs no instruction of the program's any more: where it can be raised so that
  /// the program never sees it.
  std::function<void(HostPid)> asked;
};

/// Stops every thread below `init` and returns them, parents before children. A vfork parent can't be stopped before
/// its child is through, which runs on for a moment while all else is stopped; if that isn't enough, everything is let
/// go and tried again, until `limit` is over (`busy`). `stopped_at` is when the first thread was asked to stop
/// (CLOCK_MONOTONIC, ns). `known` are stopped first, before anything is looked for. As long as the last number is the
/// known one, nobody has been born, and the threads of each process, which take longest to read, need not be.
Result<std::vector<FrozenProcess>> freeze_all(HostPid init, const Known& known, const FreezeHooks& hooks,
                                              std::chrono::milliseconds limit, std::int64_t& stopped_at);

/// Lets a thread go on to which nothing has been done: it can't tell that it was a tracee.
void let_go(kernel::Tracee&);

/// Lets everything go on.
void thaw_all(std::vector<FrozenProcess>& frozen);

/// CLOCK_MONOTONIC of this node in nanoseconds.
[[nodiscard]] std::int64_t now_ns();

}  // namespace godwit::migrate
