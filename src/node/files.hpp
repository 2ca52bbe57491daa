#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.hpp"

/// Small files that hold what a node must not lose or give away.
namespace godwit::node {

/// The whole file. `secret`: `refused` when others than its owner can read it. `invalid` when it is longer than
/// `limit`.
Result<std::string> read_whole(const std::string& path, std::size_t limit, bool secret = false);
/// The file is the old one or the new one, whatever happens, and on the disk when this returns.
Result<void> replace_file(const std::string& path, const std::string& text, mode_t mode);

/// With all above it; `mode` is the last one's, also when it was there.
Result<void> make_directory(const std::string& path, mode_t mode);

}  // namespace godwit::node
