#include "objects/clocks.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <sstream>

#include "base/fd.hpp"
#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

constexpr std::int64_t second = 1'000'000'000;

/// Offset of a process's namespace against the host's, from /proc/PID/timens_offsets ("monotonic  SECONDS
/// NANOSECONDS").
Result<std::int64_t> host_offset(const std::string& process, std::string_view clock) {
  const std::string path = process + "/timens_offsets";
  const Fd file{::openat(kernel::proc_directory(), path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) {
    if (errno == ENOENT) return std::int64_t{0};  // a kernel without time namespaces
    return fail_errno("open /proc/{}", path);
  }
  std::array<char, 256> text{};
  const ssize_t got = ::read(file.get(), text.data(), text.size());
  if (got < 0) return fail_errno("read /proc/{}", path);
  std::istringstream lines(std::string(text.data(), static_cast<std::size_t>(got)));
  std::string name;
  std::int64_t seconds = 0, nanoseconds = 0;
  while (lines >> name >> seconds >> nanoseconds)
    if (name == clock) return seconds * second + nanoseconds;
  return fail(ErrorKind::failed, "/proc/{} has no {}", path, clock);
}

}  // namespace

Result<std::int64_t> clock_offset(std::optional<HostPid> process, clockid_t clock) {
  if (!process) return 0;
  std::string_view name;
  switch (clock) {
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
      name = "monotonic";
      break;
    case CLOCK_BOOTTIME:
    case CLOCK_BOOTTIME_ALARM:
      name = "boottime";
      break;
    default:
      return 0;
  }
  return TRY(host_offset(std::to_string(process->value), name)) - TRY(host_offset("self", name));
}

std::int64_t clock_now(clockid_t clock) {
  struct timespec now {};
  ::clock_gettime(clock, &now);
  return now.tv_sec * second + now.tv_nsec;
}

}  // namespace godwit::objects
