#pragma once

#include "image/codec.hpp"

namespace godwit::objects {

/// How the kernel schedules a thread. Read and set from outside, by thread id.
struct Scheduling {
  std::uint32_t policy = 0;  ///< SCHED_*
  std::uint64_t flags = 0;   ///< SCHED_FLAG_RESET_ON_FORK and kin
  std::int32_t nice = 0;
  std::uint32_t priority = 0;                           ///< of SCHED_FIFO and SCHED_RR
  std::uint64_t runtime = 0, deadline = 0, period = 0;  ///< SCHED_DEADLINE, ns
  std::uint32_t io_priority = 0;                        ///< ioprio_get
  /// CPUs it may run on as a bit set, byte 0 bit 0 first; empty when it may run on all that the source has.
  Bytes affinity;
  bool operator==(const Scheduling&) const = default;
  MSGPACK_DEFINE_MAP(policy, flags, nice, priority, runtime, deadline, period, io_priority, affinity)
};

/// Take this before the thread's priority is raised for the freeze.
Result<Scheduling> scheduling_of(HostPid tid);
/// Policy, nice, I/O priority, and the affinity as far as the CPUs exist here.
Result<void> set_scheduling(HostPid tid, const Scheduling&);
/// The policy alone, of a thread that has had all of this already and was raised since.
Result<void> set_policy(HostPid tid, const Scheduling&);
/// `refused` when none of the CPUs that the thread is bound to exists here.
Result<void> check_affinity(const Scheduling&);

}  // namespace godwit::objects
