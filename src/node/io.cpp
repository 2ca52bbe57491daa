#include "node/io.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <memory>

namespace godwit::node {
namespace {

int poll_time(Deadline deadline) {
  if (deadline == never()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<long>(left, 0, 3600 * 1000));
}

Result<void> wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd poll{fd, events, 0};
    const int ready = ::poll(&poll, 1, poll_time(deadline));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno("poll");
    if (std::chrono::steady_clock::now() >= deadline) return fail(ErrorKind::timeout, "no answer in time");
  }
}

std::unexpected<Error> broken(std::string_view what) {
  const int code = errno;
  return std::unexpected(Error{ErrorKind::unreachable, std::string(what), code, {}});
}

}  // namespace

Result<void> wait_readable(int fd, Deadline deadline) {
  return wait_for(fd, POLLIN, deadline);
}

Result<std::size_t> read_some(int fd, void* data, std::size_t size, Deadline deadline) {
  for (;;) {
    const ssize_t got = ::recv(fd, data, size, MSG_DONTWAIT);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return broken("receive");
    TRY(wait_for(fd, POLLIN, deadline));
  }
}

Result<void> read_exactly(int fd, void* data, std::size_t size, Deadline deadline) {
  auto* at = static_cast<std::uint8_t*>(data);
  while (size > 0) {
    const std::size_t got = TRY(read_some(fd, at, size, deadline));
    if (got == 0) return fail(ErrorKind::unreachable, "the other side closed the connection");
    at += got;
    size -= got;
  }
  return {};
}

Result<void> write_all(int fd, const void* data, std::size_t size, Deadline deadline) {
  const auto* at = static_cast<const std::uint8_t*>(data);
  while (size > 0) {
    const ssize_t sent = ::send(fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      at += sent;
      size -= static_cast<std::size_t>(sent);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return broken("send");
    TRY(wait_for(fd, POLLOUT, deadline));
  }
  return {};
}

Result<void> write_all(int fd, const std::string& text, Deadline deadline) {
  return write_all(fd, text.data(), text.size(), deadline);
}

Result<Bytes> read_frame(int fd, std::size_t limit, Deadline deadline) {
  std::uint32_t length = 0;
  TRY(read_exactly(fd, &length, sizeof length, deadline));
  length = ntohl(length);
  if (length > limit) return fail(ErrorKind::invalid, "frame of {} bytes is over the limit of {}", length, limit);
  Bytes payload(length);
  TRY(read_exactly(fd, payload.data(), payload.size(), deadline));
  return payload;
}

Result<void> write_frame(int fd, BytesView payload, Deadline deadline) {
  // One send: with TCP_NODELAY two would be two packets.
  Bytes whole(sizeof(std::uint32_t) + payload.size());
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(payload.size()));
  std::memcpy(whole.data(), &length, sizeof length);
  std::ranges::copy(payload, whole.begin() + sizeof length);
  return write_all(fd, whole.data(), whole.size(), deadline);
}

void prepare_tcp(int fd) {
  const auto set = [fd](int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof value); };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

Result<Fd> connect_tcp(const std::string& host, std::uint16_t port, Deadline deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) return fail(ErrorKind::unreachable, "{}: {}", host, ::gai_strerror(code));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  Error last{ErrorKind::unreachable, fmt::format("{} has no address", host), 0, {}};
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    Fd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return fail_errno("socket");
    int error = 0;
    if (::connect(fd.get(), address->ai_addr, address->ai_addrlen) != 0) {
      if (errno != EINPROGRESS) {
        last = Error{ErrorKind::unreachable, fmt::format("connect to {}:{}", host, port), errno, {}};
        continue;
      }
      if (!wait_for(fd.get(), POLLOUT, deadline)) {
        last = Error{ErrorKind::unreachable, fmt::format("connect to {}:{}", host, port), ETIMEDOUT, {}};
        continue;
      }
      socklen_t size = sizeof error;
      ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error != 0) {
      last = Error{ErrorKind::unreachable, fmt::format("connect to {}:{}", host, port), error, {}};
      continue;
    }
    ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK);
    prepare_tcp(fd.get());
    return fd;
  }
  return std::unexpected(std::move(last));
}

void splice_both(int left, int right) {
  struct Way {
    int from, to;
    bool open = true;
  };
  std::array<Way, 2> ways{{{left, right}, {right, left}}};
  std::array<char, 65536> buffer;
  while (ways[0].open || ways[1].open) {
    std::array<pollfd, 2> polls;
    for (int i = 0; i < 2; i++) polls[i] = {ways[i].open ? ways[i].from : -1, POLLIN, 0};
    if (::poll(polls.data(), polls.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    for (int i = 0; i < 2; i++) {
      if (!ways[i].open || polls[i].revents == 0) continue;
      const auto got = read_some(ways[i].from, buffer.data(), buffer.size(), never());
      if (!got) return;
      if (*got == 0) {
        ways[i].open = false;
        ::shutdown(ways[i].to, SHUT_WR);
      } else if (!write_all(ways[i].to, buffer.data(), *got, never())) {
        return;
      }
    }
  }
}

}  // namespace godwit::node
