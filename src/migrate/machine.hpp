#pragma once

#include <cstdint>

#include "base/result.hpp"
#include "control/machine.hpp"

namespace godwit::migrate {

/// This node's machine. It doesn't change while a daemon runs.
Result<control::Machine> read_machine();

/// Connections for pages that pay on this machine: one per two processors, one to four.
std::uint32_t page_connections();

}  // namespace godwit::migrate
