#pragma once

#include <vector>

#include "objects/kind.hpp"

namespace godwit::objects {

/// A file lock as fdinfo shows it.
struct FileLock {
  std::string kind;  ///< "flock" and "ofd" belong to the description, "posix" to a process
  bool exclusive = false;
  std::uint64_t start = 0;
  std::uint64_t length = 0;  ///< 0: to the end of the file, however long it gets
  Holder holder;             ///< posix: who has it, by which number
  MSGPACK_DEFINE_MAP(kind, exclusive, start, length, holder)
};

/// All locks taken through this description. Leases are refused.
Result<std::vector<FileLock>> capture_locks(const Descriptor&, Source&);
/// Takes those that belong to the description.
Result<void> take_locks(const std::vector<FileLock>&, int fd);
/// Takes those that belong to the holder's process, in it. Closing any descriptor of the file there drops them again:
/// the last thing to be done to a table.
void take_process_locks(const std::vector<FileLock>&, const Holder&, kernel::Batch&);

}  // namespace godwit::objects
