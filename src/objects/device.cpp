#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

/// Devices without any state of their own: one is like the other on every node (Documentation/admin-guide/devices.txt).
struct Stateless {
  unsigned major, minor;
  std::string_view path;
};
constexpr std::array<Stateless, 5> stateless{
    {{1, 3, "/dev/null"}, {1, 5, "/dev/zero"}, {1, 7, "/dev/full"}, {1, 8, "/dev/random"}, {1, 9, "/dev/urandom"}}};

struct State {
  std::uint32_t major = 0, minor = 0;
  std::string path;
  int flags = 0;
  std::int64_t position = 0;
  std::string terminal;  ///< of /dev/tty: the stream that it stands for
  MSGPACK_DEFINE_MAP(major, minor, path, flags, position, terminal)
};

const Stateless* find(unsigned major, unsigned minor) {
  const auto* at = std::ranges::find_if(
      stateless, [&](const Stateless& each) { return each.major == major && each.minor == minor; });
  return at == stateless.end() ? nullptr : at;
}

bool is_controlling_terminal(const struct stat& status) {
  return status.st_rdev == makedev(5, 0);
}

bool matches(const Descriptor& descriptor) {
  return S_ISCHR(descriptor.status.st_mode) && (descriptor.flags & O_PATH) == 0;
}

/// TIOCGDEV tells which terminal is meant; only the init's own are there again at the destination.
std::optional<std::string> terminal_of(const Descriptor& descriptor, Source& source) {
  unsigned device = 0;
  struct stat terminal {};
  if (::ioctl(descriptor.fd, TIOCGDEV, &device) != 0) return std::nullopt;
  const std::string path = fmt::format("{}/dev/pts/{}", source.root(), minor(device));
  if (::stat(path.c_str(), &terminal) != 0 || terminal.st_rdev != device) return std::nullopt;
  return source.stream(terminal);
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  const auto& status = descriptor.status;
  if (find(major(status.st_rdev), minor(status.st_rdev))) return {};
  if (is_controlling_terminal(status)) {
    if (terminal_of(descriptor, source)) return {};
    return fail(ErrorKind::refused, "{}: a controlling terminal that is not the pod's", descriptor.link);
  }
  return fail(ErrorKind::refused, "{}: character device {}:{}", descriptor.link, major(status.st_rdev),
              minor(status.st_rdev));
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  TRY(preflight(descriptor, source));
  State state{.major = major(descriptor.status.st_rdev),
              .minor = minor(descriptor.status.st_rdev),
              .path = descriptor.link,
              .flags = descriptor.flags};
  if (is_controlling_terminal(descriptor.status)) state.terminal = terminal_of(descriptor, source).value_or("");
  // /dev/zero and its kin keep a position that no one can tell from 0; F_GETFL and fdinfo show it all the same.
  state.position = std::max<off_t>(::lseek(descriptor.fd, 0, SEEK_CUR), 0);
  return state;
}

Result<Fd> build(const State& state, Destination& destination) {
  if (makedev(state.major, state.minor) == makedev(5, 0)) {
    const Fd terminal = TRY(destination.stream(state.terminal));
    return reopen(terminal.get(), open_flags(state.flags));
  }
  const auto* device = find(state.major, state.minor);
  if (!device) return fail(ErrorKind::invalid, "device {}:{} in an image", state.major, state.minor);
  const std::string usual(device->path);
  for (const auto& path : {state.path, usual}) {
    Fd fd{::open(path.c_str(), open_flags(state.flags) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) < 0 || !S_ISCHR(status.st_mode) ||
        status.st_rdev != makedev(state.major, state.minor))
      continue;
    TRY(set_status_flags(fd.get(), state.flags));
    if (state.position > 0) ::lseek(fd.get(), state.position, SEEK_SET);
    return fd;
  }
  return fail(ErrorKind::failed, "{} (device {}:{}) is not in the pod here", state.path, state.major, state.minor);
}

}  // namespace

const Kind device_kind{.name = "device",
                       .matches = matches,
                       .preflight = preflight,
                       .capture = captures<State, capture>,
                       .build = builds<State, build>,
                       .attach = nothing_to_attach,
                       .open = nothing_to_open};

}  // namespace godwit::objects
