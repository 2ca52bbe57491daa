#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "image/codec.hpp"

/// What a pod uses of its node's own root: files below its upper layer that are mapped or open. The destination must
/// have the same ones; by content, since its root may be another disk.
namespace godwit::pod {

struct ManifestEntry {
  std::string path;  ///< in the pod's root
  std::uint64_t size = 0;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0, gid = 0;
  std::int64_t modified = 0;         ///< nanoseconds since 1970; told, not compared: another disk has other times
  std::vector<std::uint8_t> sha256;  ///< of regular files; empty for all else
  MSGPACK_DEFINE_MAP(path, size, mode, uid, gid, modified, sha256)
};

struct ManifestDifference {
  std::string path;
  std::string reason;  ///< "is missing", "has 12 bytes here, 13 at the source", "has another content" …
  MSGPACK_DEFINE_MAP(path, reason)
};

/// Hashes that were made before, kept in a file: a file is hashed once for as long as (device, inode, ctime, size)
/// stay. Not thread-safe; several daemons of one state_dir don't exist.
class HashCache {
 public:
  /// `path` is created by `save`; one that is missing or damaged is an empty cache.
  static HashCache load(std::string path);
  /// Writes a new file and renames it over the old one. Nothing is done when nothing was added.
  Result<void> save();

  /// SHA-256 of an open regular file, from the cache or by reading it. A file that changed within the last tick of the
  /// file system's clock isn't remembered.
  Result<std::vector<std::uint8_t>> sha256(int fd, const std::string& path);
  /// How many files have been read, rather than remembered.
  [[nodiscard]] std::uint64_t hashed() const { return hashed_; }

 private:
  struct Key {
    std::uint64_t device = 0, inode = 0, size = 0;
    std::int64_t changed = 0;
    auto operator<=>(const Key&) const = default;
    MSGPACK_DEFINE_MAP(device, inode, size, changed)
  };
  struct Line {
    Key key;
    std::vector<std::uint8_t> sha256;
    MSGPACK_DEFINE_MAP(key, sha256)
  };
  std::string path_;
  std::map<Key, std::vector<std::uint8_t>> known_;
  std::uint64_t hashed_ = 0;
  bool changed_ = false;
};

/// The files as they are here. `root` is the pod's root as a path that is valid here; `paths` are absolute in it. Takes
/// long when much is to be hashed: before the freeze.
Result<std::vector<ManifestEntry>> describe(const std::string& root, const std::vector<std::string>& paths, HashCache&);

/// What differs at `root` from the entries; empty when all is the same. Hashes only what has the right type and size.
Result<std::vector<ManifestDifference>> compare(const std::string& root, const std::vector<ManifestEntry>& entries,
                                                HashCache&);

/// Paths whose file isn't any more what was described: by size, mode, owner and mtime alone, so it can stand in the
/// freeze. One stat per entry.
Result<std::vector<std::string>> changed_since(const std::string& root, const std::vector<ManifestEntry>& entries);

}  // namespace godwit::pod
