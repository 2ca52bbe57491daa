#include "objects/directory.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <set>

#include "base/bytes.hpp"

namespace godwit::objects {
namespace {

constexpr std::size_t most_names = 1 << 20;

struct Entry {
  std::string name;
  std::int64_t after = 0;  ///< position behind it
};

/// struct linux_dirent64: inode, offset, record length, type, name
Result<std::vector<Entry>> list(int fd) {
  std::vector<Entry> entries;
  std::vector<char> buffer(64 * KiB);
  if (::lseek(fd, 0, SEEK_SET) < 0) return fail_errno("rewind a directory");
  for (;;) {
    const long got = ::syscall(SYS_getdents64, fd, buffer.data(), buffer.size());
    if (got < 0) return fail_errno("getdents64");
    if (got == 0) return entries;
    for (long at = 0; at < got;) {
      Entry entry;
      std::uint16_t length = 0;
      std::memcpy(&entry.after, buffer.data() + at + 8, 8);
      std::memcpy(&length, buffer.data() + at + 16, 2);
      entry.name = buffer.data() + at + 19;
      entries.push_back(std::move(entry));
      at += length;
    }
    if (entries.size() > most_names) return fail(ErrorKind::refused, "a directory of more than {} entries", most_names);
  }
}

}  // namespace

Result<ReadingPosition> read_position(int own, std::int64_t position) {
  ReadingPosition reading;
  const auto entries = TRY(list(own));
  const auto at = static_cast<std::uint64_t>(position);
  for (const auto& entry : entries) {
    // Positions grow along the directory. The entry at the position may have been removed since.
    if (static_cast<std::uint64_t>(entry.after) > at) return reading;
    reading.names.push_back(entry.name);
  }
  return ReadingPosition{.at_end = true};
}

Result<void> seek_position(int fd, const ReadingPosition& reading) {
  const auto entries = TRY(list(fd));
  const std::set<std::string> read(reading.names.begin(), reading.names.end());
  std::int64_t position = 0;
  for (const auto& entry : entries) {
    if (!reading.at_end && !read.contains(entry.name)) break;
    position = entry.after;
  }
  if (::lseek(fd, position, SEEK_SET) < 0) return fail_errno("seek in a directory to {}", position);
  return {};
}

}  // namespace godwit::objects
