#pragma once

namespace godwit::node {
inline constexpr const char* version = "0.1.0";
}  // namespace godwit::node
