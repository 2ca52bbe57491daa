#pragma once

#include <time.h>

#include <cstdint>
#include <optional>

#include "base/ids.hpp"
#include "base/result.hpp"

/// A pod's clocks, read from outside its time namespace.
namespace godwit::objects {

/// Offset of a clock in a process's time namespace against the calling thread's (nanoseconds): its clock reads ours
/// plus this. 0 for clocks that no time namespace shifts. With no process it is 0: both are taken to be in one
/// namespace.
Result<std::int64_t> clock_offset(std::optional<HostPid> process, clockid_t clock);

/// clock_gettime in nanoseconds.
[[nodiscard]] std::int64_t clock_now(clockid_t clock);

}  // namespace godwit::objects
