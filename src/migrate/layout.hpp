#pragma once

#include <string>
#include <vector>

#include "base/ids.hpp"
#include "image/codec.hpp"
#include "kernel/procfs.hpp"

/// Address spaces as data: what is mapped where, by what it is backed, and how one layout becomes another.
namespace godwit::migrate {

enum class Backing : std::uint8_t {
  anonymous = 0,  ///< private memory
  file = 1,       ///< private mapping of a file
  object = 2,     ///< shared: a memory object (shared anonymous, memfd, tmpfs file) or a regular file
  vdso = 3,       ///< vdso and vvar pages: the kernel's own, moved into place
};

/// One mapping.
struct Area {
  std::uint64_t begin = 0, end = 0;
  int protection = 0;
  Backing backing = Backing::anonymous;
  std::uint64_t offset = 0;  ///< into the file or object
  std::uint64_t object = 0;  ///< Backing::object: its key. Backing::file: of a file that is deleted, else 0
  std::string
      path;  ///< Backing::file: in the pod's root. Anonymous: the name given by PR_SET_VMA. vdso: "[vdso]", "[vvar]" …
  std::string flags;  ///< advice and the like as smaps' VmFlags, only those that can be set: "gd hg nh dc dd wf lo nr"
  bool writable = false;  ///< Backing::object: the file that is mapped was opened for writing, too
  [[nodiscard]] std::uint64_t size() const { return end - begin; }
  bool operator==(const Area&) const = default;
  MSGPACK_DEFINE_MAP(begin, end, protection, backing, offset, object, path, flags, writable)
};

/// All of it is in memory, by mlock without MLOCK_ONFAULT.
[[nodiscard]] inline bool locked(const Area& area) {
  return area.flags.find("lo") != std::string::npos && area.flags.find("lf") == std::string::npos;
}

/// Sorted by address, not overlapping.
using Layout = std::vector<Area>;

/// A shared memory object of the pod: one for each (device, inode) that is mapped shared or held as a memfd.
struct ObjectInfo {
  enum class Kind : std::uint8_t { anonymous = 0, memfd = 1, file = 2, deleted = 3 };
  std::uint64_t key = 0;  ///< objects::memory_object_key at the source: the same for all who share it
  Kind kind = Kind::anonymous;
  std::string name;  ///< memfd: its name; file: its path in the pod's root; deleted: the path it had
  std::uint64_t size = 0;
  bool writable = false;  ///< some mapping of it was made for writing
  std::uint64_t descriptor_key =
      0;  ///< deleted: the key that descriptors of it have; an overlay's stat says other numbers than its mappings
  MSGPACK_DEFINE_MAP(key, kind, name, size, writable, descriptor_key)
};

/// What the kernel says, as a layout. `leave_out` is a range of ours (the gadget). Objects met are added to `objects`.
/// What can't be moved is `refused`, with the mapping's name.
Result<Layout> layout_of(const std::vector<kernel::Mapping>& mappings, RemoteAddress leave_out_begin,
                         RemoteAddress leave_out_end, std::vector<ObjectInfo>& objects);

/// One step from one layout to another.
struct Change {
  enum class Kind { unmap, map, grow, protect, advise } kind;
  Area area;  ///< unmap: only begin and end count; grow: `offset` is the old size
};

/// The steps that turn `from` into `to`, unmaps first. What stays mapped keeps its pages.
[[nodiscard]] std::vector<Change> difference(const Layout& from, const Layout& to);

}  // namespace godwit::migrate

MSGPACK_ADD_ENUM(godwit::migrate::Backing)
MSGPACK_ADD_ENUM(godwit::migrate::ObjectInfo::Kind)
