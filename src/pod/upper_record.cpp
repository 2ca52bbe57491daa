#include "pod/upper_record.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace godwit::pod {

bool travels(std::string_view attribute) {
  constexpr std::array<std::string_view, 5> notes{"trusted.overlay.origin", "trusted.overlay.impure",
                                                  "trusted.overlay.nlink", "trusted.overlay.uuid",
                                                  "trusted.overlay.upper"};
  return std::ranges::find(notes, attribute) == notes.end();
}

Result<std::map<std::string, std::vector<std::uint8_t>>> read_attributes(int path_fd) {
  std::map<std::string, std::vector<std::uint8_t>> attributes;
  // There is no call that reads attributes through an O_PATH descriptor before Linux 6.13.
  const std::string path = fmt::format("/proc/self/fd/{}", path_fd);
  std::array<char, 64 * KiB> names;  // the kernel's own limit (XATTR_LIST_MAX)
  const ssize_t length = ::listxattr(path.c_str(), names.data(), names.size());
  if (length < 0) {
    if (errno == EOPNOTSUPP) return attributes;
    return fail_errno("listxattr");
  }
  for (ssize_t at = 0; at < length;) {
    const std::string name(names.data() + at);
    at += static_cast<ssize_t>(name.size()) + 1;
    if (name == "trusted.overlay.metacopy")
      return fail(ErrorKind::refused, "a file of which the overlay has copied only the metadata (metacopy)");
    if (!travels(name)) continue;
    std::vector<std::uint8_t> value(64 * KiB);  // XATTR_SIZE_MAX
    const ssize_t size = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (size < 0) {
      if (errno == ENODATA) continue;
      return fail_errno("getxattr {}", name);
    }
    value.resize(static_cast<std::size_t>(size));
    attributes[name] = std::move(value);
  }
  return attributes;
}

Result<Fd> open_below(int directory, const std::string& path, std::uint64_t flags) {
  struct open_how how {};
  how.flags = flags | O_CLOEXEC | O_NOFOLLOW;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
  const char* name = path.empty() ? "." : path.c_str();
  Fd fd{static_cast<int>(::syscall(SYS_openat2, directory, name, &how, sizeof how))};
  if (!fd) return fail_errno("open {} in the upper layer", name);
  return fd;
}

}  // namespace godwit::pod
