#pragma once

#include <cstdint>
#include <ctime>

#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::objects {

/// CLOCK_MONOTONIC as the pod's processes see it (their time namespace). It goes on across a move, so a deadline said
/// in it means the same moment at the source and at the destination. Nanoseconds.
class PodClock {
 public:
  /// The clock of a process, from /proc/PID/timens_offsets. The offset never changes: read it before the freeze.
  static Result<PodClock> of(HostPid);
  [[nodiscard]] std::int64_t now() const;
  /// Another clock as the pod's processes see it.
  [[nodiscard]] std::int64_t now(clockid_t) const;
  /// A time of the host's own clock (what the scheduler's figures are in), as the pod sees it.
  [[nodiscard]] std::int64_t from_host(std::int64_t host) const { return host + pod_offset_; }

 private:
  std::int64_t pod_offset_ = 0;     ///< pod's clock minus the host's
  std::int64_t boot_offset_ = 0;    ///< pod's CLOCK_BOOTTIME minus ours
  std::int64_t daemon_offset_ = 0;  ///< our own clock minus the host's: a daemon may live in a time namespace too
};

}  // namespace godwit::objects
