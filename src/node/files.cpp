#include "node/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "base/fd.hpp"

namespace godwit::node {

Result<std::string> read_whole(const std::string& path, std::size_t limit, bool secret) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open {}", path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail_errno("read {}", path);
  if (!S_ISREG(status.st_mode)) return fail(ErrorKind::invalid, "{} is not a file", path);
  if (secret && (status.st_mode & 077) != 0)
    return std::unexpected(
        Error{ErrorKind::refused, fmt::format("{} can be read by others", path), 0, fmt::format("chmod 600 {}", path)});
  std::string text(limit + 1, '\0');
  std::size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read {}", path);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  if (size > limit) return fail(ErrorKind::invalid, "{} is longer than {} bytes", path, limit);
  text.resize(size);
  return text;
}

Result<void> replace_file(const std::string& path, const std::string& text, mode_t mode) {
  const std::string fresh = fmt::format("{}.new", path);
  ::unlink(fresh.c_str());
  {
    const Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    if (!fd) return fail_errno("write {}", fresh);
    if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) || ::fsync(fd.get()) != 0)
      return fail_errno("write {}", fresh);
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("write {}", path);
  const Fd directory(::open(std::filesystem::path(path).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0) return fail_errno("write {}", path);
  return {};
}

Result<void> make_directory(const std::string& path, mode_t mode) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail(ErrorKind::failed, "make {}: {}", path, error.message());
  if (::chmod(path.c_str(), mode) != 0) return fail_errno("chmod {}", path);
  return {};
}

}  // namespace godwit::node
