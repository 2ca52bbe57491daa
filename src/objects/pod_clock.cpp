#include "objects/pod_clock.hpp"

#include <fcntl.h>

#include <ctime>
#include <string_view>

#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

/// "monotonic  SECONDS  NANOSECONDS\nboottime …"; a kernel without time namespaces has no such file and no offset.
Result<std::int64_t> parse_offset(const std::string& text, std::string_view clock = "monotonic") {
  long long seconds = 0;
  long long nanoseconds = 0;
  const auto at = text.find(clock);
  if (at == std::string::npos ||
      std::sscanf(text.c_str() + at + clock.size(), "%lld %lld", &seconds, &nanoseconds) != 2)
    return fail(ErrorKind::failed, "malformed timens_offsets: \"{}\"", text);
  return seconds * 1'000'000'000 + nanoseconds;
}

Result<std::int64_t> own_offset(std::string_view clock = "monotonic") {
  const Fd file(::openat(kernel::proc_directory(), "self/timens_offsets", O_RDONLY | O_CLOEXEC));
  if (!file) return errno == ENOENT ? Result<std::int64_t>(0) : fail_errno("open /proc/self/timens_offsets");
  char text[256] = {};
  if (::read(file.get(), text, sizeof text - 1) < 0) return fail_errno("read /proc/self/timens_offsets");
  return parse_offset(text, clock);
}

}  // namespace

Result<PodClock> PodClock::of(HostPid pid) {
  PodClock clock;
  clock.daemon_offset_ = TRY(own_offset());
  auto text = kernel::read_file(pid, "timens_offsets");
  if (text) {
    clock.pod_offset_ = TRY(parse_offset(*text));
    clock.boot_offset_ = TRY(parse_offset(*text, "boottime")) - TRY(own_offset("boottime"));
  } else if (text.error().code != ENOENT) {
    return std::unexpected(std::move(text).error());
  }
  return clock;
}

std::int64_t PodClock::now() const {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec - daemon_offset_ + pod_offset_;
}

std::int64_t PodClock::now(clockid_t clock) const {
  if (clock == CLOCK_MONOTONIC) return now();
  timespec time{};
  ::clock_gettime(clock, &time);
  const bool boot = clock == CLOCK_BOOTTIME || clock == CLOCK_BOOTTIME_ALARM;
  return time.tv_sec * 1'000'000'000 + time.tv_nsec + (boot ? boot_offset_ : 0);
}

}  // namespace godwit::objects
