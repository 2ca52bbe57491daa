#include "store/connection.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>

namespace godwit::store {
namespace {

std::unexpected<Error> no_connection(int code) {
  return std::unexpected(Error{ErrorKind::unreachable, "connect", code, {}});
}

std::string tls_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : "TLS failed";
}

Result<Fd> connect_one(const addrinfo& address, Deadline deadline) {
  Fd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("socket");
  if (::connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return no_connection(errno);
    TRY(wait_for(fd.get(), POLLOUT, deadline));
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return no_connection(error);
  }
  const int one = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  // A stream waits by poll, on a socket in blocking mode.
  if (::fcntl(fd.get(), F_SETFL, 0) != 0) return fail_errno("fcntl");
  return fd;
}

/// TLS with a server that shows a certificate for `host`.
Result<Stream> shake_hands(Fd fd, const std::string& host, SSL_CTX* tls, Deadline deadline) {
  Stream::Session session(SSL_new(tls));
  if (!session) return fail(ErrorKind::failed, "TLS: {}", tls_reason());
  SSL* ssl = session.get();
  std::uint8_t bytes[16];
  const bool number = ::inet_pton(AF_INET, host.c_str(), bytes) == 1 || ::inet_pton(AF_INET6, host.c_str(), bytes) == 1;
  const bool set = number ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host.c_str()) == 1
                          : SSL_set1_host(ssl, host.c_str()) == 1 && SSL_set_tlsext_host_name(ssl, host.c_str()) == 1;
  if (!set) return fail(ErrorKind::failed, "TLS: {}", tls_reason());
  SSL_set_connect_state(ssl);
  // Kept beyond a failure: the session knows what was wrong with the certificate.
  SSL_up_ref(ssl);
  const Stream::Session kept(ssl);
  auto stream = Stream::secure(std::move(fd), std::move(session), deadline);
  if (stream) return stream;
  if (const long verdict = SSL_get_verify_result(ssl); verdict != X509_V_OK)
    return fail(ErrorKind::unreachable, "its certificate: {}", X509_verify_cert_error_string(verdict));
  Error error = std::move(stream.error());
  if (error.kind == ErrorKind::refused) error.kind = ErrorKind::unreachable;
  return std::unexpected(std::move(error));
}

}  // namespace

Result<TlsContext> tls_client(const std::string& ca, const std::string& certificate, const std::string& key) {
  TlsContext context(SSL_CTX_new(TLS_client_method()));
  if (!context) return fail(ErrorKind::failed, "TLS: {}", tls_reason());
  SSL_CTX* raw = context.get();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(raw, SSL_MODE_AUTO_RETRY);
  const bool trusted = ca.empty() ? SSL_CTX_set_default_verify_paths(raw) == 1
                                  : SSL_CTX_load_verify_locations(raw, ca.c_str(), nullptr) == 1;
  if (!trusted) return fail(ErrorKind::invalid, "store: certificate authority {}: {}", ca, tls_reason());
  if (certificate.empty() && key.empty()) return context;
  if (SSL_CTX_use_certificate_chain_file(raw, certificate.c_str()) != 1)
    return fail(ErrorKind::invalid, "store: certificate {}: {}", certificate, tls_reason());
  if (SSL_CTX_use_PrivateKey_file(raw, key.c_str(), SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(raw) != 1)
    return fail(ErrorKind::invalid, "store: key {}: {}", key, tls_reason());
  return context;
}

Result<Connection> Connection::open(const std::string& host, std::uint16_t port, SSL_CTX* tls, Deadline deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); code != 0)
    return fail(ErrorKind::unreachable, "{}: {}", host, ::gai_strerror(code));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  Error last{ErrorKind::unreachable, "no address", 0, {}};
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    auto connected = connect_one(*address, deadline);
    if (!connected) {
      last = std::move(connected.error());
      continue;
    }
    if (tls == nullptr) return Connection(Stream(std::move(*connected)));
    return Connection(TRY(shake_hands(std::move(*connected), host, tls, deadline)));
  }
  return std::unexpected(std::move(last));
}

Result<void> Connection::write(std::string_view bytes, Deadline deadline) {
  const iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  return stream_.write({&part, 1}, deadline);
}

Result<std::size_t> Connection::read(char* data, std::size_t size, Deadline deadline) {
  for (;;) {
    const ssize_t got = stream_.receive(data, size);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EAGAIN) return std::unexpected(stream_.broken("receive", errno));
    TRY(wait_for(stream_.fd(), POLLIN, deadline));
  }
}

}  // namespace godwit::store
