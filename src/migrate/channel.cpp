#include "migrate/channel.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "base/fault.hpp"

namespace godwit::migrate {

namespace {

constexpr std::size_t first_step = 1 * MiB;
/// Whoever has begun a message goes on with it, however long the answer was thought about.
constexpr std::chrono::milliseconds longest_pause = std::chrono::seconds(10);

Result<void> send_as(fault::Flow flow, Stream& stream, std::span<const iovec> parts) {
  if (auto instead = fault::altered(flow, stream.fd(), parts)) {
    if (instead->empty()) return {};
    const iovec whole{instead->data(), instead->size()};
    return stream.write({&whole, 1}, Deadline::max());
  }
  return stream.write(parts, Deadline::max());
}

}  // namespace

Result<void> send_all(Stream& stream, const void* data, std::size_t size) {
  const iovec part{const_cast<void*>(data), size};
  return send_all(stream, {&part, 1});
}

Result<void> send_all(Stream& stream, std::span<const iovec> parts) {
  return send_as(fault::Flow::records, stream, parts);
}

Result<std::size_t> receive_some(Stream& stream, void* data, std::size_t size, std::chrono::milliseconds limit) {
  for (;;) {
    const ssize_t got = stream.receive(data, size);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got == 0) return fail(ErrorKind::unreachable, "the peer closed the connection");
    if (errno != EAGAIN) return std::unexpected(stream.broken("receive from the peer", errno));
    if (wait_for(stream.fd(), POLLIN, std::chrono::steady_clock::now() + limit)) continue;
    return fail(ErrorKind::unreachable, "the peer has said nothing for {} ms", limit.count());
  }
}

Result<void> receive_all(Stream& stream, void* data, std::size_t size, Deadline deadline) {
  auto* to = static_cast<std::uint8_t*>(data);
  while (size > 0) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= left.zero()) return fail(ErrorKind::unreachable, "the rest of a record hasn't come in time");
    const std::size_t got = TRY(receive_some(stream, to, size, std::chrono::ceil<std::chrono::milliseconds>(left)));
    to += got;
    size -= got;
  }
  return {};
}

Result<void> receive_all(Stream& stream, void* data, std::size_t size, std::chrono::milliseconds limit) {
  auto* to = static_cast<std::uint8_t*>(data);
  while (size > 0) {
    const std::size_t got = TRY(receive_some(stream, to, size, limit));
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

Channel::Channel(Stream stream) : stream_(std::move(stream)) {
  notice_silence(stream_.fd());
}

void Channel::be_patient(std::chrono::seconds bound) {
  notice_silence(stream_.fd(), bound);
}

void Channel::hang_up() {
  ::shutdown(stream_.fd(), SHUT_RDWR);
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
  TRY(send_as(fault::Flow::control, stream_, {parts.data(), payload.empty() ? std::size_t{1} : 2}));
  bytes_sent_ += head.size() + payload.size();
  return {};
}

Result<Message> Channel::receive(std::chrono::milliseconds limit) {
  std::array<std::uint8_t, 5> head{};
  TRY(receive_all(stream_, head.data(), 1, limit));
  const auto pause = std::min(limit, longest_pause);
  TRY(receive_all(stream_, head.data() + 1, head.size() - 1, pause));
  std::uint32_t length = 0;
  std::memcpy(&length, head.data(), sizeof length);
  if (length > max_payload) return fail(ErrorKind::invalid, "the peer announced a message of {} bytes", length);
  Message message{head[4], {}};
  // Memory for what comes, not for what is announced.
  for (std::size_t there = 0; there < length; there = message.payload.size()) {
    message.payload.resize(std::min<std::size_t>(length, std::max(2 * there, first_step)));
    TRY(receive_all(stream_, message.payload.data() + there, message.payload.size() - there, pause));
  }
  return message;
}

bool Channel::readable(std::chrono::milliseconds patience) {
  pollfd wait{stream_.fd(), POLLIN, 0};
  return stream_.ready() || ::poll(&wait, 1, static_cast<int>(patience.count())) > 0;
}

bool Channel::hung_up() const {
  pollfd end{stream_.fd(), POLLRDHUP, 0};
  return ::poll(&end, 1, 0) > 0;
}

}  // namespace godwit::migrate
