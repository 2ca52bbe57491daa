#pragma once

#include <sys/stat.h>

#include <map>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"

/// What travels between UpperSource and UpperTarget: a message is an array of these.
namespace godwit::pod {

struct UpperRecord {
  /// "make"    a new entry (a directory or regular file may be there already, and stays if not `fresh`)
  /// "data"    bytes of a regular file
  /// "zero"    `size` bytes of it that are zero now
  /// "link"    a further name of the regular file `target`
  /// "remove"  an entry with all that is in it
  /// "seal"    owner, mode, times and attributes, once nothing in it will change any more in this pass
  std::string action;
  std::string path;  ///< relative to the layer; "" is the layer's own directory
  std::uint32_t mode = 0;
  std::uint32_t uid = 0, gid = 0;
  std::uint64_t device = 0;  ///< st_rdev of device nodes; a character device 0 is a whiteout
  std::uint64_t size = 0;
  std::uint64_t offset = 0;
  bool fresh = false;   ///< what stands there is another file, and goes
  bool opaque = false;  ///< a directory that hides the lower layer's
  std::int64_t modified = 0, modified_ns = 0, accessed = 0, accessed_ns = 0;
  std::string target;  ///< of a symbolic or hard link
  std::map<std::string, std::vector<std::uint8_t>> attributes;
  std::vector<std::uint8_t> bytes;
  MSGPACK_DEFINE_MAP(action, path, mode, uid, gid, device, size, offset, fresh, opaque, modified, modified_ns, accessed,
                     accessed_ns, target, attributes, bytes)
};

inline constexpr std::size_t upper_block = 64 * KiB;
inline constexpr std::size_t upper_data = 8 * upper_block;  ///< most bytes of one "data"

/// Both ends keep the paths of all entries in memory, and a few nested directories make each of them 4 KiB long.
inline constexpr std::size_t most_upper_entries = 4'000'000;
inline constexpr std::size_t most_upper_path_bytes = 256 * MiB;

/// An overlay's own mark that one directory hides another.
inline constexpr std::string_view opaque_attribute = "trusted.overlay.opaque";

/// True for attributes that mean something at the destination too. An overlay's notes on where a file was copied from
/// (origin, impure, nlink, uuid …) are about the source's disk.
[[nodiscard]] bool travels(std::string_view attribute);

/// Extended attributes of the file behind an O_PATH descriptor.
Result<std::map<std::string, std::vector<std::uint8_t>>> read_attributes(int path_fd);

/// openat2 below `directory` that follows no symbolic link and leaves neither it nor its file system.
Result<Fd> open_below(int directory, const std::string& path, std::uint64_t flags);

}  // namespace godwit::pod
