#include "base/remove_tree.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string_view>

#include "base/fd.hpp"

namespace godwit {
namespace {

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Listing = std::unique_ptr<DIR, CloseDirectory>;

Result<Listing> list(int parent, const char* name) {
  Fd fd(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return fail_errno("open {}", name);
  Listing listing(::fdopendir(fd.get()));
  if (!listing) return fail_errno("list {}", name);
  (void)fd.release();
  return listing;
}

/// The next name that isn't "." or "..".
const char* next(DIR* listing) {
  for (;;) {
    const dirent* entry = ::readdir(listing);
    if (entry == nullptr) return nullptr;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") return entry->d_name;
  }
}

/// True when it was a file or an empty directory, and is gone.
Result<bool> remove_one(int parent, const char* name) {
  if (::unlinkat(parent, name, 0) == 0) return true;
  if (errno != EISDIR && errno != EPERM) return fail_errno("remove {}", name);
  if (::unlinkat(parent, name, AT_REMOVEDIR) == 0) return true;
  if (errno == ENOTEMPTY || errno == EEXIST) return false;
  return fail_errno("remove {}", name);
}

/// Empties a directory in `top`: its directories that aren't empty move up beside it.
Result<void> flatten(int top, const char* name, std::uint64_t& moved) {
  const Listing inner = TRY(list(top, name));
  const int directory = ::dirfd(inner.get());
  while (const char* child = next(inner.get())) {
    if (TRY(remove_one(directory, child))) continue;
    for (;;) {
      const std::string free = fmt::format(".removed-{}", moved++);
      if (::renameat2(directory, child, top, free.c_str(), RENAME_NOREPLACE) == 0) break;
      if (errno != EEXIST) return fail_errno("move {} up", child);
    }
  }
  // What a listing has passed over meanwhile is for the next look.
  if (::unlinkat(top, name, AT_REMOVEDIR) != 0 && errno != ENOTEMPTY) return fail_errno("remove {}", name);
  return {};
}

}  // namespace

Result<void> remove_tree(const std::string& path) {
  auto removed = remove_one(AT_FDCWD, path.c_str());
  if (!removed && removed.error().code == ENOENT) return {};
  if (TRY(removed)) return {};
  const Listing top = TRY(list(AT_FDCWD, path.c_str()));
  std::uint64_t moved = 0;
  // Again and again: what has moved up may come before the place where the listing is.
  for (bool some = true; some;) {
    some = false;
    ::rewinddir(top.get());
    while (const char* name = next(top.get())) {
      if (!TRY(remove_one(::dirfd(top.get()), name))) TRY(flatten(::dirfd(top.get()), name, moved));
      some = true;
    }
  }
  if (::rmdir(path.c_str()) != 0) return fail_errno("remove {}", path);
  return {};
}

}  // namespace godwit
