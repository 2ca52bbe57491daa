#include "objects/scheduling.hpp"

#include <fcntl.h>
#include <linux/ioprio.h>
#include <linux/sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

// <linux/sched/types.h> and glibc's <sched.h> define the same names.
struct sched_attr {
  std::uint32_t size, sched_policy;
  std::uint64_t sched_flags;
  std::int32_t sched_nice;
  std::uint32_t sched_priority;
  std::uint64_t sched_runtime, sched_deadline, sched_period;
};

constexpr std::size_t affinity_bytes = 1024;  // 8,192 CPUs, what a kernel of Debian's can have at most

/// CPUs of this machine that work are a set as wide as pid 1's or ours may be, whichever is wider: both can be bound.
Result<Bytes> usable_cpus() {
  Bytes set(affinity_bytes);
  const Fd file(::openat(AT_FDCWD, "/sys/devices/system/cpu/online", O_RDONLY | O_CLOEXEC));
  char text[4096] = {};
  if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) return fail_errno("read /sys/devices/system/cpu/online");
  for (const char* at = text; *at >= '0' && *at <= '9';) {
    char* end = nullptr;
    const unsigned long first = std::strtoul(at, &end, 10);
    unsigned long last = first;
    if (*end == '-') last = std::strtoul(end + 1, &end, 10);
    for (unsigned long cpu = first; cpu <= last && cpu < affinity_bytes * 8; ++cpu)
      set[cpu / 8] |= static_cast<std::uint8_t>(1U << (cpu % 8));
    at = *end == ',' ? end + 1 : end;
  }
  return set;
}

/// Read once: CPUs that come or go while the daemon runs only make a thread's "all" an explicit list.
const Result<Bytes>& machine_cpus() {
  static const Result<Bytes> cpus = usable_cpus();
  return cpus;
}

Bytes intersection(const Bytes& a, const Bytes& b) {
  Bytes result(std::min(a.size(), b.size()));
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = a[i] & b[i];
  return result;
}

bool none(const Bytes& set) {
  return std::ranges::all_of(set, [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace

Result<Scheduling> scheduling_of(HostPid tid) {
  Scheduling result;
  sched_attr attributes{};
  if (::syscall(SYS_sched_getattr, tid.value, &attributes, sizeof attributes, 0) < 0)
    return fail_errno("read the scheduling policy of thread {}", tid.value);
  result.policy = attributes.sched_policy;
  result.flags = attributes.sched_flags & SCHED_FLAG_RESET_ON_FORK;
  // Of a real-time thread sched_getattr doesn't say it.
  errno = 0;
  result.nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(tid.value));
  if (errno != 0) return fail_errno("read the nice value of thread {}", tid.value);
  result.priority = attributes.sched_priority;
  if (attributes.sched_policy == SCHED_DEADLINE) {
    result.flags = attributes.sched_flags & (SCHED_FLAG_RESET_ON_FORK | SCHED_FLAG_RECLAIM | SCHED_FLAG_DL_OVERRUN);
    result.runtime = attributes.sched_runtime;
    result.deadline = attributes.sched_deadline;
    result.period = attributes.sched_period;
  }
  const long io_priority = ::syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.value);
  if (io_priority < 0) return fail_errno("read the I/O priority of thread {}", tid.value);
  result.io_priority = static_cast<std::uint32_t>(io_priority);
  Bytes cpus(affinity_bytes);
  const long size = ::syscall(SYS_sched_getaffinity, tid.value, cpus.size(), cpus.data());
  if (size < 0) return fail_errno("read the affinity of thread {}", tid.value);
  const auto& machine = machine_cpus();
  if (!machine) return std::unexpected(machine.error());
  if (intersection(cpus, *machine) != *machine) {
    while (!cpus.empty() && cpus.back() == 0) cpus.pop_back();
    result.affinity = std::move(cpus);
  }
  return result;
}

Result<void> set_scheduling(HostPid tid, const Scheduling& wanted) {
  if (!wanted.affinity.empty()) {
    TRY(check_affinity(wanted));
    const Bytes cpus = intersection(wanted.affinity, *machine_cpus());
    if (::syscall(SYS_sched_setaffinity, tid.value, cpus.size(), cpus.data()) < 0)
      return fail_errno("bind thread {} to its CPUs", tid.value);
  }
  if (::syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.value, wanted.io_priority) < 0)
    return fail_errno("set the I/O priority of thread {}", tid.value);
  // A real-time or idle thread keeps a nice value for the day when it is none any more; sched_setattr doesn't set it.
  if (wanted.policy != SCHED_DEADLINE && ::setpriority(PRIO_PROCESS, static_cast<id_t>(tid.value), wanted.nice) != 0)
    return fail_errno("set the nice value of thread {}", tid.value);
  return set_policy(tid, wanted);
}

Result<void> set_policy(HostPid tid, const Scheduling& wanted) {
  sched_attr attributes{.size = sizeof(sched_attr),
                        .sched_policy = wanted.policy,
                        .sched_flags = wanted.flags,
                        .sched_nice = wanted.nice,
                        .sched_priority = wanted.priority,
                        .sched_runtime = wanted.runtime,
                        .sched_deadline = wanted.deadline,
                        .sched_period = wanted.period};
  if (::syscall(SYS_sched_setattr, tid.value, &attributes, 0) < 0)
    return fail_errno("set the scheduling policy of thread {}", tid.value);
  return {};
}

Result<void> check_affinity(const Scheduling& wanted) {
  if (wanted.affinity.empty()) return {};
  const auto& machine = machine_cpus();
  if (!machine) return std::unexpected(machine.error());
  if (none(intersection(wanted.affinity, *machine)))
    return fail(ErrorKind::refused, "a thread is bound to CPUs that this node doesn't have");
  return {};
}

}  // namespace godwit::objects
