#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "image/codec.hpp"
#include "kernel/procfs.hpp"
#include "kernel/remote.hpp"
#include "kernel/tracee.hpp"
#include "objects/pod_clock.hpp"
#include "objects/timers.hpp"

/// Everything that the threads of a process share and that is neither memory nor a descriptor.
namespace godwit::objects {

struct ResourceLimit {
  std::uint64_t soft = 0, hard = 0;
  MSGPACK_DEFINE_MAP(soft, hard)
};

/// One signal's action as the kernel has it (struct kernel_sigaction on x86-64).
struct SignalAction {
  std::uint64_t handler = 0, flags = 0, restorer = 0, mask = 0;
  bool operator==(const SignalAction&) const = default;
  MSGPACK_DEFINE_MAP(handler, flags, restorer, mask)
};

/// Where the parts of the program lie (struct prctl_mm_map).
struct MemoryLayout {
  std::uint64_t start_code = 0, end_code = 0, start_data = 0, end_data = 0, start_brk = 0, brk = 0, start_stack = 0,
                arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  Bytes auxv;
  MSGPACK_DEFINE_MAP(start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
                     env_start, env_end, auxv)
};

struct ProcessState {
  PodPid pid;
  std::int32_t umask = 0;
  std::string cwd, root, exe;         ///< in the pod's mount namespace
  std::vector<ResourceLimit> limits;  ///< RLIMIT_* by number
  std::vector<SignalAction> actions;  ///< of signal i + 1; SIGKILL's and SIGSTOP's stay empty
  std::vector<Bytes> pending;         ///< siginfo_t of the signals queued for the process, oldest first
  Timers timers;
  MemoryLayout layout;
  std::uint64_t membarrier = 0;  ///< registered commands
  bool subreaper = false, huge_pages_disabled = false, memory_merge = false;
  std::int32_t dumpable = 1;
  std::uint64_t memory_deny_write_execute = 0;
  std::int32_t oom_score_adjustment = 0;
  std::uint64_t coredump_filter = 0;
  bool amx_permitted = false;  ///< the program may use AMX tiles (ARCH_REQ_XCOMP_PERM)
  MSGPACK_DEFINE_MAP(pid, umask, cwd, root, exe, limits, actions, pending, timers, layout, membarrier, subreaper,
                     huge_pages_disabled, memory_merge, dumpable, memory_deny_write_execute, oom_score_adjustment,
                     coredump_filter, amx_permitted)
};

/// What can't move, named, while the pod runs; from /proc only. An error is returned only when the process can't be
/// read.
Result<void> preflight_process(HostPid process, std::vector<std::string>& refusals);

/// At the destination: `refused` when a hard limit is above what this node lets anyone have.
Result<void> check_limits(const ProcessState&);

/// Captures one process, all of whose threads are stopped: `look`, then `ask` and a run of the batch in one of its
/// threads, then `take`.
class ProcessCapture {
 public:
  /// From outside. `thread`: any living thread of the process, also when the leader has exited. `status`: the
  /// process's.
  Result<void> look(HostPid process, const kernel::Tracee& thread, const kernel::Status& status);
  void ask(kernel::Batch&);
  Result<ProcessState> take(const kernel::Batch&, const PodClock&);

 private:
  ProcessState state_;
  TimersCapture timers_;
  RemoteAddress limits_ = 0, actions_ = 0, subreaper_ = 0, components_ = 0;
  kernel::Batch::Call umask_{}, brk_{}, subreaper_call_{}, huge_pages_{}, dumpable_{}, deny_write_execute_{},
      memory_merge_{}, membarrier_{}, components_call_{};
  std::vector<kernel::Batch::Call> limit_calls_, action_calls_;
};

/// Rebuilds a process in a stopped stub of it. Batches run in one of its threads, in this order, all before any
/// thread's credentials, but for `last`.
class ProcessRestore {
 public:
  explicit ProcessRestore(const ProcessState& state, PodClock clock) : state_(state), clock_(clock) {}

  /// Before memory and descriptors: what memory depends on, and soft limits out of the way.
  void early(kernel::Batch&);
  /// Memory, threads and descriptors are in place. `free_number` is above every descriptor number that the process
  /// uses, and below its limit while it is built. The root directory, the working directory and the program must exist
  /// in the pod's mount namespace.
  void late(kernel::Batch&, int free_number);
  /// From outside, after `late`: oom_score_adj, coredump_filter; sees that the program is the right one.
  Result<void> outside(HostPid process);
  /// After the credentials of all threads, in any one thread: what changing credentials resets, or would forbid us.
  void last(kernel::Batch&);

 private:
  const ProcessState& state_;
  PodClock clock_;
};

}  // namespace godwit::objects
