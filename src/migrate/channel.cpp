#include "migrate/channel.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>

namespace godwit::migrate {

namespace {

std::unexpected<Error> broken(const char* what) {
  const int code = errno;
  return std::unexpected(Error{ErrorKind::unreachable, fmt::format("{} the peer", what), code, {}});
}

Result<void> write_vector(int socket, iovec* parts, std::size_t count) {
  while (count > 0) {
    msghdr header{};
    header.msg_iov = parts;
    header.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(socket, &header, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      return broken("send to");
    }
    auto left = static_cast<std::size_t>(sent);
    while (count > 0 && left >= parts->iov_len) {
      left -= parts->iov_len;
      ++parts;
      --count;
    }
    if (count > 0) {
      parts->iov_base = static_cast<std::uint8_t*>(parts->iov_base) + left;
      parts->iov_len -= left;
    }
  }
  return {};
}

}  // namespace

Result<void> send_all(int socket, const void* data, std::size_t size) {
  iovec part{const_cast<void*>(data), size};
  return write_vector(socket, &part, 1);
}

Result<std::size_t> receive_some(int socket, void* data, std::size_t size, std::chrono::milliseconds limit) {
  for (;;) {
    const ssize_t got = ::recv(socket, data, size, MSG_DONTWAIT);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got == 0) return fail(ErrorKind::unreachable, "the peer closed the connection");
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return broken("receive from");
    pollfd wait{socket, POLLIN, 0};
    const int ready = ::poll(&wait, 1, static_cast<int>(limit.count()));
    if (ready == 0) return fail(ErrorKind::unreachable, "the peer has said nothing for {} ms", limit.count());
    if (ready < 0 && errno != EINTR) return broken("wait for");
  }
}

Result<void> receive_all(int socket, void* data, std::size_t size, std::chrono::milliseconds limit) {
  auto* to = static_cast<std::uint8_t*>(data);
  while (size > 0) {
    const std::size_t got = TRY(receive_some(socket, to, size, limit));
    to += got;
    size -= got;
  }
  return {};
}

void notice_silence(int socket, std::chrono::seconds bound) {
  const auto set = [&](int level, int option, int value) {
    (void)::setsockopt(socket, level, option, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  // A second of silence is asked about; the user timeout alone decides when it is over (it overrides the count of
  // probes).
  set(IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, static_cast<int>(bound.count()));
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(std::chrono::milliseconds(bound).count()));
}

Channel::Channel(Fd socket) : socket_(std::move(socket)) {
  notice_silence(socket_.get());
}

void Channel::be_patient(std::chrono::seconds bound) {
  notice_silence(socket_.get(), bound);
}

Result<void> Channel::send(std::uint8_t type, BytesView payload) {
  if (payload.size() > max_payload)
    return fail(ErrorKind::invalid, "a message of {} bytes is over the limit", payload.size());
  std::array<std::uint8_t, 5> head{};
  const auto length = static_cast<std::uint32_t>(payload.size());
  std::memcpy(head.data(), &length, sizeof length);
  head[4] = type;
  std::array<iovec, 2> parts{iovec{head.data(), head.size()},
                             iovec{const_cast<std::uint8_t*>(payload.data()), payload.size()}};
  TRY(write_vector(socket_.get(), parts.data(), payload.empty() ? 1 : 2));
  bytes_sent_ += head.size() + payload.size();
  return {};
}

Result<Message> Channel::receive(std::chrono::milliseconds limit) {
  std::array<std::uint8_t, 5> head{};
  TRY(receive_all(socket_.get(), head.data(), head.size(), limit));
  std::uint32_t length = 0;
  std::memcpy(&length, head.data(), sizeof length);
  if (length > max_payload) return fail(ErrorKind::invalid, "the peer announced a message of {} bytes", length);
  Message message{head[4], Bytes(length)};
  TRY(receive_all(socket_.get(), message.payload.data(), length, limit));
  return message;
}

bool Channel::readable() const {
  pollfd wait{socket_.get(), POLLIN, 0};
  return ::poll(&wait, 1, 0) > 0;
}

}  // namespace godwit::migrate
