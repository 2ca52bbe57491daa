#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"

/// Sets of capabilities (capabilities(7)): bit N stands for number N.
namespace godwit::kernel {

using Capabilities = std::uint64_t;

constexpr Capabilities capability(int number) {
  return 1ULL << number;
}

/// The highest that this kernel knows.
int last_capability();
/// All that this kernel knows.
Capabilities all_capabilities();

/// "CAP_NET_ADMIN, CAP_KILL"; "none" for the empty set, "all" for the whole.
std::string to_text(Capabilities);
/// Names with or without CAP_, in any case; "all" and "none" stand alone. `invalid` names what isn't one.
Result<Capabilities> parse_capabilities(const std::vector<std::string>& names);

/// What this thread may use, and what it and its children can ever get by exec.
Result<Capabilities> permitted_capabilities(HostPid thread);
Capabilities bounding_capabilities();

/// What the calling thread executes from here on gets none but these. Needs CAP_SETPCAP.
Result<void> limit_bounding(Capabilities kept);
/// And it has itself no others any more. For a process with one thread.
Result<void> keep_capabilities(Capabilities kept);

}  // namespace godwit::kernel
