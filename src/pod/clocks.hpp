#pragma once

#include <cstdint>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "pod/spec.hpp"

namespace godwit::pod {

/// A pod's clocks at an instant of this host.
struct ClockReading {
  Clocks clocks;
  std::int64_t at = 0;  ///< this host's CLOCK_MONOTONIC (nanoseconds), as the daemon sees it
};

/// Offsets of a time namespace in nanoseconds. Absolute to the machine, whatever time namespace the reader is in
/// (time_namespaces(7)), and fixed once a process has entered.
struct ClockOffsets {
  std::int64_t monotonic = 0;
  std::int64_t boottime = 0;
};

/// The offsets in /proc/PID/timens_offsets.
Result<ClockOffsets> read_clock_offsets(HostPid);
/// The clocks as a process in another time namespace sees them now. `gone` when it has ended.
Result<ClockReading> read_clocks(HostPid);
/// What the offsets of a new namespace must be for its clocks to read `reading.clocks` at `reading.at`.
Result<ClockOffsets> offsets_for(const ClockReading&);
/// Writes the offsets for the caller's future children, after unshare(CLONE_NEWTIME).
Result<void> write_clock_offsets(const ClockOffsets&);

}  // namespace godwit::pod
