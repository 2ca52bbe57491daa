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

#include "base/fault.hpp"

namespace godwit::node {

Result<void> wait_readable(Stream& stream, Deadline deadline) {
  if (stream.ready()) return {};
  return wait_for(stream.fd(), POLLIN, deadline);
}

Result<std::size_t> read_some(Stream& stream, void* data, std::size_t size, Deadline deadline) {
  for (;;) {
    const ssize_t got = stream.receive(data, size);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EAGAIN) return std::unexpected(stream.broken("receive", errno));
    TRY(wait_for(stream.fd(), POLLIN, deadline));
  }
}

Result<void> read_exactly(Stream& stream, void* data, std::size_t size, Deadline deadline) {
  auto* at = static_cast<std::uint8_t*>(data);
  while (size > 0) {
    const std::size_t got = TRY(read_some(stream, at, size, deadline));
    if (got == 0) return fail(ErrorKind::unreachable, "the other side closed the connection");
    at += got;
    size -= got;
  }
  return {};
}

Result<void> write_all(Stream& stream, const void* data, std::size_t size, Deadline deadline) {
  const iovec part{const_cast<void*>(data), size};
  return stream.write({&part, 1}, deadline);
}

Result<void> write_all(Stream& stream, const std::string& text, Deadline deadline) {
  return write_all(stream, text.data(), text.size(), deadline);
}

Result<Bytes> read_frame(Stream& stream, std::size_t limit, Deadline deadline) {
  std::uint32_t length = 0;
  TRY(read_exactly(stream, &length, sizeof length, deadline));
  length = ntohl(length);
  if (length > limit) return fail(ErrorKind::invalid, "frame of {} bytes is over the limit of {}", length, limit);
  Bytes payload(length);
  TRY(read_exactly(stream, payload.data(), payload.size(), deadline));
  return payload;
}

Result<void> write_frame(Stream& stream, BytesView payload, Deadline deadline) {
  // One send: with TCP_NODELAY two would be two packets.
  Bytes whole(sizeof(std::uint32_t) + payload.size());
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(payload.size()));
  std::memcpy(whole.data(), &length, sizeof length);
  std::ranges::copy(payload, whole.begin() + sizeof length);
  const iovec frame{whole.data(), whole.size()};
  if (auto instead = fault::altered(fault::Flow::frame, stream.fd(), {&frame, 1})) whole = std::move(*instead);
  return write_all(stream, whole.data(), whole.size(), deadline);
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

void splice_both(Stream& left, Stream& right) {
  struct Way {
    Stream& from;
    Stream& to;
    bool open = true;
  };
  std::array<Way, 2> ways{{{left, right}, {right, left}}};
  std::array<char, 65536> buffer;
  while (ways[0].open || ways[1].open) {
    std::array<pollfd, 2> polls;
    bool ready = false;
    for (int i = 0; i < 2; i++) {
      polls[i] = {ways[i].open ? ways[i].from.fd() : -1, POLLIN, 0};
      ready = ready || (ways[i].open && ways[i].from.ready());
    }
    if (::poll(polls.data(), polls.size(), ready ? 0 : -1) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    for (int i = 0; i < 2; i++) {
      if (!ways[i].open || (polls[i].revents == 0 && !ways[i].from.ready())) continue;
      const ssize_t got = ways[i].from.receive(buffer.data(), buffer.size());
      if (got < 0 && errno == EAGAIN) continue;
      if (got < 0) return;
      if (got == 0) {
        ways[i].open = false;
        ways[i].to.end();
      } else if (!write_all(ways[i].to, buffer.data(), static_cast<std::size_t>(got), never())) {
        return;
      }
    }
  }
}

}  // namespace godwit::node
