#include "node/server.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>

#include "base/caught.hpp"
#include "base/log.hpp"

namespace godwit::node {

Server::Server(Fd listener, std::size_t strangers, std::size_t most, Tasks::Work serve)
    : listener_(std::move(listener)),
      wake_(::eventfd(0, EFD_CLOEXEC)),
      serve_(std::move(serve)),
      tasks_(strangers, most) {
  thread_ = std::thread([this] { keep_going("the listener", [this] { accept_all(); }); });
}

void Server::stop() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  thread_.join();
  listener_.reset();
  tasks_.finish();
}

void Server::accept_all() {
  for (;;) {
    pollfd polls[2] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(polls, 2, -1) < 0 && errno != EINTR) return;
    if (polls[1].revents != 0) return;
    if (polls[0].revents == 0) continue;
    Fd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection) {
      tasks_.run(std::move(connection), serve_);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
      log::error("accept: {}: waiting for descriptors to become free", std::strerror(errno));
      ::poll(&polls[1], 1, 200);
    }
  }
}

Result<Fd> listen_unix(const Config::Socket& socket) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(socket.path).parent_path(), error);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.path.size() >= sizeof address.sun_path)
    return fail(ErrorKind::invalid, "socket path {} is too long", socket.path);
  std::memcpy(address.sun_path, socket.path.c_str(), socket.path.size() + 1);
  const auto* name = reinterpret_cast<const sockaddr*>(&address);

  Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe) return fail_errno("socket");
  if (::connect(probe.get(), name, sizeof address) == 0)
    return std::unexpected(Error{ErrorKind::busy, fmt::format("another godwitd answers on {}", socket.path), 0,
                                 "stop it, or give this one another run_dir"});
  ::unlink(socket.path.c_str());

  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno("socket");
  // The mode of the socket's inode decides about the file's: nobody gets in between bind and chmod.
  if (::fchmod(fd.get(), 0600) != 0) return fail_errno("chmod {}", socket.path);
  if (::bind(fd.get(), name, sizeof address) != 0) return fail_errno("bind {}", socket.path);
  if (!socket.group.empty()) {
    const group* found = ::getgrnam(socket.group.c_str());
    if (found == nullptr) return fail(ErrorKind::invalid, "socket.group: no group named '{}'", socket.group);
    if (::chown(socket.path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0)
      return fail_errno("chown {}", socket.path);
  }
  if (::chmod(socket.path.c_str(), socket.mode) != 0) return fail_errno("chmod {}", socket.path);
  if (::listen(fd.get(), 128) != 0) return fail_errno("listen {}", socket.path);
  return fd;
}

Result<Fd> listen_tcp(const std::string& address, std::uint16_t port) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(sockaddr_in);
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (::inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
  } else if (::inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    size = sizeof(sockaddr_in6);
  } else {
    return fail(ErrorKind::invalid, "listen address '{}' is not an IP address", address);
  }
  Fd fd(::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno("socket");
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  // "::" is for IPv4 as well, whatever the machine's default is.
  const int zero = 0;
  if (storage.ss_family == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&storage), size) != 0)
    return fail_errno("listen on {}:{}", address, port);
  if (::listen(fd.get(), 128) != 0) return fail_errno("listen on {}:{}", address, port);
  return fd;
}

}  // namespace godwit::node
