#pragma once

#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"

namespace godwit::objects {

/// One stretch of a sparse file, at most 1 MiB.
struct Extent {
  std::uint64_t offset = 0;
  std::vector<std::uint8_t> bytes;
  MSGPACK_DEFINE_MAP(offset, bytes)
};

/// What a file holds: for those that no file system layer carries.
struct Content {
  std::uint64_t size = 0;
  std::vector<Extent> extents;
  MSGPACK_DEFINE_MAP(size, extents)
};

/// More than this isn't carried in the freeze: refused by name.
inline constexpr std::uint64_t largest_content = 128 * MiB;

/// Data of a regular file without its holes. `fd` must be open for reading; its position doesn't matter and stays.
/// `refused` when there is more data than largest_content.
Result<Content> read_content(int fd);
/// How many bytes of data read_content would return, from the blocks the file has (an estimate from above).
Result<std::uint64_t> estimate_content(int fd);
/// Makes a file hold exactly this.
Result<void> write_content(int fd, const Content&);

}  // namespace godwit::objects
