#pragma once

#include <string>

#include "base/result.hpp"

namespace godwit {

/// Removes a file, or a directory with all that is in it, without following links. However deep it is, three
/// descriptors are enough: the tree may be somebody else's work. What isn't there is as good as removed. Nobody else
/// may change it meanwhile. Errors name what stays behind.
Result<void> remove_tree(const std::string& path);

}  // namespace godwit
