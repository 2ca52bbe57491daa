#pragma once

#include <chrono>
#include <string>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "base/stream.hpp"

/// Bytes over connections, on threads: every call ends by its deadline. The sockets stay in blocking mode.
namespace godwit::node {

inline Deadline in(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}
/// Far enough away to mean "as long as it takes".
inline Deadline never() {
  return Deadline::max();
}

/// `timeout` when nothing came by then.
Result<void> wait_readable(Stream&, Deadline);
/// At least one byte, or 0 at the end of the stream. `unreachable` when the connection broke.
Result<std::size_t> read_some(Stream&, void* data, std::size_t size, Deadline);
/// Exactly `size` bytes; the stream ending before is `unreachable`.
Result<void> read_exactly(Stream&, void* data, std::size_t size, Deadline);
Result<void> write_all(Stream&, const void* data, std::size_t size, Deadline);
Result<void> write_all(Stream&, const std::string& text, Deadline);

/// A frame is its length (32 bits, big endian) and so many bytes. Longer than `limit` is `invalid`.
Result<Bytes> read_frame(Stream&, std::size_t limit, Deadline);
Result<void> write_frame(Stream&, BytesView payload, Deadline);

/// A connected TCP socket, blocking, TCP_NODELAY, with keep-alives that find a dead peer in half a minute.
Result<Fd> connect_tcp(const std::string& host, std::uint16_t port, Deadline);
void prepare_tcp(int fd);

/// Copies both ways until both directions have ended or one side broke. Half-closes are passed on.
void splice_both(Stream& left, Stream& right);

}  // namespace godwit::node
