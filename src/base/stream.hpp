#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <chrono>
#include <memory>
#include <span>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

using SSL = struct ssl_st;

namespace godwit {

using Deadline = std::chrono::steady_clock::time_point;

/// A connected stream socket, as it is or below TLS: whoever reads and writes doesn't see which. Moved, never copied.
///
/// One thread may read while another one writes. The socket stays in blocking mode; what waits, waits by poll. With TLS
/// bytes may have been decrypted already that poll knows nothing of: ask `ready` before polling.
class Stream {
 public:
  Stream();
  /// Without TLS.
  explicit Stream(Fd socket);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  /// Says orderly goodbye (close_notify) when that can be done without waiting.
  ~Stream();

  struct FreeSsl {
    void operator()(SSL*) const;
  };
  using Session = std::unique_ptr<SSL, FreeSsl>;
  /// Does the handshake of a session (SSL_set_connect_state or SSL_set_accept_state was called) over the socket.
  /// `timeout`; `unreachable` when the connection broke; `refused` when either side doesn't trust the other, or doesn't
  /// speak TLS.
  static Result<Stream> secure(Fd socket, Session, Deadline);

  /// The socket, for its options, poll and shutdown. Not for reading and writing.
  [[nodiscard]] int fd() const { return socket_.get(); }
  explicit operator bool() const { return static_cast<bool>(socket_); }
  void reset() { *this = Stream(); }
  /// The socket out of a stream without TLS, which is empty from here on.
  Fd take_socket() { return std::move(socket_); }
  /// Of the other side; null without TLS.
  [[nodiscard]] SSL* session() const;

  /// As recv(2) with MSG_DONTWAIT: 0 at the orderly end, -1 with errno (EAGAIN: poll for POLLIN). `peek`: what is read
  /// stays there.
  ssize_t receive(void* data, std::size_t size, bool peek = false);
  /// True when `receive` has something, or an error, that poll wouldn't tell of.
  [[nodiscard]] bool ready();
  /// All of `parts`, or an error: `timeout`, or `unreachable` when the connection broke.
  Result<void> write(std::span<const iovec> parts, Deadline);
  /// Nothing more will be written: the other side reads to the end of it, and may go on writing.
  void end();
  /// What went wrong with the connection: from errno, and in TLS's words if there are some.
  [[nodiscard]] Error broken(const std::string& what, int code) const;

 private:
  struct Tls;
  Fd socket_;
  std::unique_ptr<Tls> tls_;
};

/// Waits until poll tells one of `events`, an error or the end; `timeout`.
Result<void> wait_for(int fd, short events, Deadline);

}  // namespace godwit
