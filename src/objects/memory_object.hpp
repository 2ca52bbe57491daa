#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>

#include "base/fd.hpp"

/// Shared memory with an inode: memfds, files in tmpfs, shared anonymous mappings. Its content travels with the pages
/// of the address spaces; descriptors of it find the object that was made for them here.
namespace godwit::objects {

/// Names a memory object within one migration: computed from the inode at the source.
[[nodiscard]] constexpr std::uint64_t memory_object_key(dev_t device, ino_t inode) {
  return (static_cast<std::uint64_t>(device) << 40 | static_cast<std::uint64_t>(device) >> 24) ^ inode;
}

/// Source::shared<MemoryObjectKeys>("memory-objects"): the objects whose content the memory engine carries. Filled
/// before capture. The content of all others goes with the state of their descriptors.
struct MemoryObjectKeys {
  std::set<std::uint64_t> keys;
};

/// Destination::shared<MemoryObjects>("memory-objects"): the objects that exist already, open for reading and writing.
/// Filled by the memory engine before descriptors are built, and by descriptors whose content they bring themselves.
struct MemoryObjects {
  std::map<std::uint64_t, Fd> objects;
};

}  // namespace godwit::objects
