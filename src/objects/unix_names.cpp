#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cstring>

#include "objects/unix_state.hpp"

namespace godwit::objects::local {
namespace {

std::string path_of(const Name& name) {
  std::string path(name.text.begin(), name.text.end());
  if (path.empty() || path[0] == '/') return path;
  return name.directory + "/" + path;
}

/// A relative name is bound where its directory is; the thread's own working directory is the pod's root.
class Within {
 public:
  explicit Within(const Name& name) : used_(!name.directory.empty()) {
    if (used_) failed_ = ::chdir(name.directory.c_str()) != 0;
  }
  ~Within() {
    if (used_ && ::chdir("/") != 0) failed_ = true;
  }
  Within(const Within&) = delete;
  Within& operator=(const Within&) = delete;
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  bool used_, failed_ = false;
};

}  // namespace

std::string describe(const Name& name) {
  if (name.empty()) return "(unnamed)";
  std::string text(name.text.begin(), name.text.end());
  for (char& each : text)
    if (each == 0) each = '@';
  return text;
}

Result<SocketAddress> address_of(const Name& name) {
  SocketAddress address;
  auto& local = reinterpret_cast<sockaddr_un&>(address.storage);
  local.sun_family = AF_UNIX;
  if (name.text.size() > sizeof(local.sun_path))
    return fail(ErrorKind::invalid, "a socket's name of {} bytes is too long", name.text.size());
  std::memcpy(local.sun_path, name.text.data(), name.text.size());
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.text.size());
  return address;
}

Result<SocketAddress> absolute_address_of(const Name& name) {
  if (name.abstract()) return address_of(name);
  Name whole = name;
  const std::string path = path_of(name);
  whole.text.assign(path.begin(), path.end());
  return address_of(whole);
}

Result<Binding> bind_name(int fd, const Name& name, bool keep) {
  Binding binding;
  if (name.empty()) return binding;
  const auto address = TRY(address_of(name));
  const Within within(name);
  if (within.failed()) return fail_errno("enter {}, where {} was bound", name.directory, describe(name));
  if (name.abstract()) {
    if (::bind(fd, address.get(), address.length) != 0) return fail_errno("bind to {}", describe(name));
    return binding;
  }
  const std::string path = path_of(name);
  const std::string aside = path + ".aside";
  struct stat status {};
  const bool stands = ::lstat(path.c_str(), &status) == 0;
  if (stands && keep) {
    if (!S_ISSOCK(status.st_mode)) return fail(ErrorKind::failed, "{} is no socket any more", path);
    if (::unlink(path.c_str()) != 0) return fail_errno("replace {}", path);
  } else if (stands && ::rename(path.c_str(), aside.c_str()) != 0) {
    return fail_errno("move {} aside", path);
  }
  const bool bound = ::bind(fd, address.get(), address.length) == 0;
  const int code = errno;
  if (keep) {
    if (!bound) return fail_errno("bind to {}", path);
    if (::chown(path.c_str(), name.uid, name.gid) != 0 || ::chmod(path.c_str(), name.mode & 07777) != 0)
      return fail_errno("give {} its owner and mode", path);
    return binding;
  }
  binding.undo_ = [path, aside, stands, bound] {
    if (bound) ::unlink(path.c_str());
    if (stands) ::rename(aside.c_str(), path.c_str());
  };
  errno = code;
  if (!bound) return fail_errno("bind to {}", path);
  return binding;
}

Result<void> connect_name(int fd, const Name& name) {
  const auto address = TRY(address_of(name));
  const Within within(name);
  if (within.failed() || ::connect(fd, address.get(), address.length) != 0)
    return fail_errno("connect to {}", describe(name));
  return {};
}

// The C library would change the credentials of all threads.
ActAs::ActAs(const Credentials& credentials) {
  ::syscall(SYS_setresgid, -1, credentials.gid, -1);
  ::syscall(SYS_setresuid, -1, credentials.uid, -1);
  // Files are still reached as root.
  ::syscall(SYS_setfsuid, 0);
}

ActAs::~ActAs() {
  ::syscall(SYS_setresuid, -1, 0, -1);
  ::syscall(SYS_setresgid, -1, 0, -1);
}

}  // namespace godwit::objects::local
