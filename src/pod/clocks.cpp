#include "pod/clocks.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string>

#include "base/fd.hpp"
#include "kernel/procfs.hpp"

namespace godwit::pod {

namespace {

constexpr std::int64_t second = 1'000'000'000;

std::int64_t now(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return time.tv_sec * second + time.tv_nsec;
}

Result<ClockOffsets> parse_offsets(const std::string& text) {
  ClockOffsets offsets;
  std::size_t begin = 0;
  int found = 0;
  while (begin < text.size()) {
    const auto end = std::min(text.find('\n', begin), text.size());
    char name[16] = {};
    long long seconds = 0;
    long nanoseconds = 0;
    if (std::sscanf(text.substr(begin, end - begin).c_str(), "%15s %lld %ld", name, &seconds, &nanoseconds) == 3) {
      const std::int64_t value = seconds * second + nanoseconds;
      if (std::string_view(name) == "monotonic") offsets.monotonic = value, ++found;
      if (std::string_view(name) == "boottime") offsets.boottime = value, ++found;
    }
    begin = end + 1;
  }
  if (found != 2) return fail(ErrorKind::failed, "timens_offsets says \"{}\"", text);
  return offsets;
}

/// Seconds rounded down, so that the nanoseconds are never negative (the kernel wants them so).
std::string line(const char* name, std::int64_t offset) {
  const std::int64_t nanoseconds = (offset % second + second) % second;
  return fmt::format("{} {} {}\n", name, (offset - nanoseconds) / second, nanoseconds);
}

}  // namespace

Result<ClockOffsets> read_clock_offsets(HostPid process) {
  return parse_offsets(TRY(kernel::read_file(process, "timens_offsets")));
}

Result<ClockReading> read_clocks(HostPid process) {
  const auto own = TRY(read_clock_offsets(HostPid{getpid()}));
  const auto theirs = TRY(read_clock_offsets(process));
  ClockReading reading;
  reading.at = now(CLOCK_MONOTONIC);
  reading.clocks.monotonic = reading.at - own.monotonic + theirs.monotonic;
  reading.clocks.boottime = now(CLOCK_BOOTTIME) - own.boottime + theirs.boottime;
  return reading;
}

Result<ClockOffsets> offsets_for(const ClockReading& reading) {
  const auto own = TRY(read_clock_offsets(HostPid{getpid()}));
  // How far boottime is ahead of monotonic changes only while the machine sleeps. The lower of the two differences is
  // the one that was read without being interrupted.
  std::int64_t ahead = now(CLOCK_BOOTTIME) - now(CLOCK_MONOTONIC);
  for (int i = 0; i < 4; ++i) ahead = std::min(ahead, -(now(CLOCK_MONOTONIC) - now(CLOCK_BOOTTIME)));
  return ClockOffsets{reading.clocks.monotonic - (reading.at - own.monotonic),
                      reading.clocks.boottime - (reading.at + ahead - own.boottime)};
}

Result<void> write_clock_offsets(const ClockOffsets& offsets) {
  const std::string text = line("monotonic", offsets.monotonic) + line("boottime", offsets.boottime);
  const Fd file(::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno("open /proc/self/timens_offsets");
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno("set the pod's clocks to offsets \"{}\"", text);
  return {};
}

}  // namespace godwit::pod
