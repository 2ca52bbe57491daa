#pragma once

#include <cstddef>
#include <string>

#include "base/result.hpp"

namespace godwit {

/// So many random bytes, in hex: fit for keys and secrets.
Result<std::string> random_hex(std::size_t bytes);

}  // namespace godwit
