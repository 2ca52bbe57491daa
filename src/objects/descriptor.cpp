#include "objects/descriptor.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>

#include "kernel/procfs.hpp"

namespace godwit::objects {

Result<Fd> reopen(int fd, int flags) {
  const std::string path = fmt::format("self/fd/{}", fd);
  Fd opened{::openat(kernel::proc_directory(), path.c_str(), flags | O_CLOEXEC | O_NOCTTY)};
  if (!opened) return fail_errno("reopen descriptor {} with flags {:#o}", fd, flags);
  return opened;
}

Result<std::string> read_info(int fd) {
  const std::string path = fmt::format("self/fdinfo/{}", fd);
  const Fd file{::openat(kernel::proc_directory(), path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) return fail_errno("open /proc/{}", path);
  std::string text;
  constexpr std::size_t step = 16 * KiB;
  for (;;) {
    const std::size_t before = text.size();
    // An epoll instance with a million registrations has some 70 MiB of text.
    if (before > 256 * MiB) return fail(ErrorKind::refused, "/proc/{} is longer than 256 MiB", path);
    text.resize(before + step);
    const ssize_t got = ::read(file.get(), text.data() + before, step);
    if (got < 0) return fail_errno("read /proc/{}", path);
    text.resize(before + static_cast<std::size_t>(got));
    if (got == 0) return text;
  }
}

std::optional<std::string_view> info_field(std::string_view text, std::string_view key) {
  std::size_t at = 0;
  while ((at = text.find(key, at)) != std::string_view::npos) {
    const bool begins = at == 0 || text[at - 1] == '\n' || text[at - 1] == ' ';
    std::size_t value = at + key.size();
    if (begins && value < text.size() && text[value] == ':') {
      value = text.find_first_not_of(" \t", value + 1);
      if (value == std::string_view::npos) return std::string_view{};
      const std::size_t end = text.find_first_of(" \t\n", value);
      return text.substr(value, end == std::string_view::npos ? end : end - value);
    }
    at += key.size();
  }
  return std::nullopt;
}

std::optional<std::uint64_t> info_number(std::string_view text, std::string_view key, int base) {
  const auto field = info_field(text, key);
  if (!field) return std::nullopt;
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(field->data(), field->data() + field->size(), number, base);
  if (error != std::errc{} || end != field->data() + field->size()) return std::nullopt;
  return number;
}

Result<void> set_status_flags(int fd, int flags) {
  const int settable = flags & (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME);
  const int now = ::fcntl(fd, F_GETFL);
  if (now < 0) return fail_errno("F_GETFL");
  constexpr int mask = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
  if ((now & mask) == settable) return {};
  if (::fcntl(fd, F_SETFL, (now & ~mask) | settable) < 0) return fail_errno("F_SETFL {:#o}", settable);
  return {};
}

int open_flags(int flags) {
  constexpr int kept = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_LARGEFILE | O_DIRECTORY |
                       O_NOFOLLOW | O_NOATIME | O_PATH;
  return flags & kept;
}

bool is_anonymous(const std::string& link, std::string_view name) {
  return link.starts_with("anon_inode:") && std::string_view(link).substr(11) == name;
}

}  // namespace godwit::objects
