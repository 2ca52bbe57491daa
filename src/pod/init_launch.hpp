#pragma once

#include <sys/resource.h>

#include <array>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "kernel/capabilities.hpp"
#include "pod/spec.hpp"

/// How a pod's init makes a process of the workload.
namespace godwit::pod {

/// What every process of the workload begins in. The cgroups are descriptors that stay valid in the pod.
struct Workload {
  Fd directory;            ///< v2
  std::vector<Fd> limits;  ///< cgroup.procs in v1 hierarchies
  rlimit descriptors{};    ///< RLIMIT_NOFILE; the init's own is higher
};

/// A process that is on its way. `report` becomes readable when it has arrived or failed: read_outcome.
struct Launched {
  pid_t process = 0;
  Fd pidfd;
  Fd report;
};

/// As whom a program runs. Whoever isn't root has no capabilities and gets none: no_new_privs is set.
struct Identity {
  User user;
  kernel::Capabilities capabilities = 0;
};

/// A program in a session of its own, with nothing open but `stdio`, default signal dispositions and an empty mask.
Result<Launched> launch_program(const Program&, const Identity&, const std::array<int, 3>& stdio, const Workload&);
/// A process with exactly this pid, with nothing open, all signals blocked and at their defaults, no rseq registered,
/// asleep for ever in pause(2).
/// `builder` becomes its only descriptor, 0; none when negative.
Result<Launched> launch_stub(pid_t process, const Workload&, int builder);
/// Once `report` is readable: whether it is running what it shall.
Result<void> read_outcome(const Launched&);

}  // namespace godwit::pod
