#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <memory>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

/// A stream to a server of somebody else's, plain or TLS, on a thread: every call ends by its deadline.
namespace godwit::store {

using Deadline = std::chrono::steady_clock::time_point;

struct FreeSsl {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
using TlsContext = std::unique_ptr<SSL_CTX, FreeSsl>;

/// PEM files. The server's certificate must be signed by `ca` (empty: by one that the system trusts) and be made out
/// for the host that was asked for; ours is shown when there is one.
Result<TlsContext> tls_client(const std::string& ca, const std::string& certificate, const std::string& key);

class Connection {
 public:
  /// `unreachable` when nobody answers there, or isn't who the certificate says. `tls` may be null: plain TCP.
  static Result<Connection> open(const std::string& host, std::uint16_t port, SSL_CTX* tls, Deadline);

  /// `timeout`, or `unreachable` when the connection broke.
  Result<void> write(std::string_view bytes, Deadline);
  /// At least one byte; 0 at the end of the stream.
  Result<std::size_t> read(char* data, std::size_t size, Deadline);

 private:
  explicit Connection(Fd fd) : fd_(std::move(fd)) {}
  Result<void> shake_hands(const std::string& host, SSL_CTX* tls, Deadline);
  /// What to do after a call of SSL_… gave `code`: nothing (it may be called again), or why not.
  Result<void> wait_tls(int code, std::string_view what, Deadline) const;

  Fd fd_;  ///< non-blocking
  std::unique_ptr<SSL, FreeSsl> ssl_;
};

}  // namespace godwit::store
