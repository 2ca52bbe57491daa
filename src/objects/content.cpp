#include "objects/content.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace godwit::objects {
namespace {

constexpr std::size_t extent_size = MiB;

}  // namespace

Result<std::uint64_t> estimate_content(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) < 0) return fail_errno("fstat");
  return std::min<std::uint64_t>(status.st_size, static_cast<std::uint64_t>(status.st_blocks) * 512);
}

Result<Content> read_content(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) < 0) return fail_errno("fstat");
  Content content{.size = static_cast<std::uint64_t>(status.st_size)};
  // SEEK_DATA moves the position of the description: `fd` is one of our own (see `reopen`).
  std::uint64_t total = 0;
  for (off_t at = 0; at < status.st_size;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // the rest is a hole
    if (data < 0) return fail_errno("SEEK_DATA from {}", at);
    const off_t end = ::lseek(fd, data, SEEK_HOLE);
    if (end < 0) return fail_errno("SEEK_HOLE from {}", data);
    total += static_cast<std::uint64_t>(end - data);
    if (total > largest_content)
      return fail(ErrorKind::refused, "more than {} MiB in a file that only descriptors keep", largest_content / MiB);
    for (off_t from = data; from < end;) {
      Extent extent{.offset = static_cast<std::uint64_t>(from)};
      extent.bytes.resize(std::min<std::size_t>(extent_size, static_cast<std::size_t>(end - from)));
      const ssize_t got = ::pread(fd, extent.bytes.data(), extent.bytes.size(), from);
      if (got < 0) return fail_errno("read {} bytes at {}", extent.bytes.size(), from);
      if (got == 0) return content;  // shrunk while we read: nothing of the pod runs, so it is what it is
      extent.bytes.resize(static_cast<std::size_t>(got));
      from += got;
      content.extents.push_back(std::move(extent));
    }
    at = end;
  }
  return content;
}

Result<void> write_content(int fd, const Content& content) {
  if (content.size > static_cast<std::uint64_t>(1) << 60)
    return fail(ErrorKind::invalid, "a file of {} bytes", content.size);
  if (::ftruncate(fd, 0) < 0 || ::ftruncate(fd, static_cast<off_t>(content.size)) < 0)
    return fail_errno("set a file's size to {}", content.size);
  for (const auto& extent : content.extents) {
    if (extent.offset > content.size || extent.bytes.size() > content.size - extent.offset)
      return fail(ErrorKind::invalid, "content beyond the end of its file");
    std::size_t done = 0;
    while (done < extent.bytes.size()) {
      const ssize_t put = ::pwrite(fd, extent.bytes.data() + done, extent.bytes.size() - done,
                                   static_cast<off_t>(extent.offset + done));
      if (put < 0) return fail_errno("write {} bytes at {}", extent.bytes.size(), extent.offset);
      done += static_cast<std::size_t>(put);
    }
  }
  return {};
}

}  // namespace godwit::objects
