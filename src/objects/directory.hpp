#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "image/codec.hpp"

namespace godwit::objects {

/// How far a directory has been read. File systems number their entries each in its own way (ext4 by a hash with a
/// secret), so the names that were read travel, not the number.
struct ReadingPosition {
  bool at_end = false;
  std::vector<std::string> names;  ///< read so far; empty at the beginning and at the end
  MSGPACK_DEFINE_MAP(at_end, names)
};

/// `own` is a description of ours for the same directory, `position` where the pod's stands (not 0).
Result<ReadingPosition> read_position(int own, std::int64_t position);
/// Puts a directory behind the longest run of entries that were read before: none is missed; where the order differs
/// here some may come twice.
Result<void> seek_position(int fd, const ReadingPosition&);

}  // namespace godwit::objects
