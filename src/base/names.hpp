#pragma once

#include <algorithm>
#include <string_view>

namespace godwit {

/// True when a name of a node or pod is fit for file names, host names and URLs: [a-z0-9][a-z0-9.-]*, 63 at most.
constexpr bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= 63 && name[0] != '.' && name[0] != '-' &&
         std::ranges::all_of(
             name, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-'; });
}

/// True when a text that somebody else has written may stand in a log or on a terminal: on one line, no control
/// characters.
constexpr bool printable(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c >= ' ' && c != 0x7f; });
}

}  // namespace godwit
