#include "objects/pod_clock.hpp"

#include <fcntl.h>

#include <ctime>

#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

/// "monotonic  SECONDS  NANOSECONDS\nboottime …"; a kernel without time namespaces has no such file and no offset.
Result<std::int64_t> parse_offset(const std::string& text) {
  long long seconds = 0;
  long long nanoseconds = 0;
  if (std::sscanf(text.c_str(), "monotonic %lld %lld", &seconds, &nanoseconds) != 2)
    return fail(ErrorKind::failed, "malformed timens_offsets: \"{}\"", text);
  return seconds * 1'000'000'000 + nanoseconds;
}

Result<std::int64_t> own_offset() {
  const Fd file(::openat(kernel::proc_directory(), "self/timens_offsets", O_RDONLY | O_CLOEXEC));
  if (!file) return errno == ENOENT ? Result<std::int64_t>(0) : fail_errno("open /proc/self/timens_offsets");
  char text[256] = {};
  if (::read(file.get(), text, sizeof text - 1) < 0) return fail_errno("read /proc/self/timens_offsets");
  return parse_offset(text);
}

}  // namespace

Result<PodClock> PodClock::of(HostPid pid) {
  PodClock clock;
  clock.daemon_offset_ = TRY(own_offset());
  auto text = kernel::read_file(pid, "timens_offsets");
  if (text)
    clock.pod_offset_ = TRY(parse_offset(*text));
  else if (text.error().code != ENOENT)
    return std::unexpected(std::move(text).error());
  return clock;
}

std::int64_t PodClock::now() const {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec - daemon_offset_ + pod_offset_;
}

}  // namespace godwit::objects
