#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "base/stream.hpp"

/// A stream to a server of somebody else's, plain or TLS, on a thread: every call ends by its deadline.
namespace godwit::store {

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using TlsContext = std::unique_ptr<SSL_CTX, FreeContext>;

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
  explicit Connection(Stream stream) : stream_(std::move(stream)) {}

  Stream stream_;
};

}  // namespace godwit::store
