#include "store/connection.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

namespace godwit::store {
namespace {

Result<void> wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd poll{fd, events, 0};
    const int ready = ::poll(&poll, 1, static_cast<int>(std::clamp<long>(left, 0, 3600 * 1000)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno("poll");
    if (std::chrono::steady_clock::now() >= deadline) return fail(ErrorKind::timeout, "no answer in time");
  }
}

std::unexpected<Error> broken(std::string_view what) {
  const int code = errno;
  return std::unexpected(Error{ErrorKind::unreachable, std::string(what), code, {}});
}

std::string tls_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : "TLS failed";
}

Result<void> connect_one(int fd, const addrinfo& address, Deadline deadline) {
  if (::connect(fd, address.ai_addr, address.ai_addrlen) == 0) return {};
  if (errno != EINPROGRESS) return broken("connect");
  TRY(wait_for(fd, POLLOUT, deadline));
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  if (error != 0) return broken("connect");
  return {};
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
    Fd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return fail_errno("socket");
    if (auto connected = connect_one(fd.get(), *address, deadline); !connected) {
      last = std::move(connected.error());
      continue;
    }
    const int one = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Connection connection(std::move(fd));
    if (tls != nullptr) TRY(connection.shake_hands(host, tls, deadline));
    return connection;
  }
  return std::unexpected(std::move(last));
}

Result<void> Connection::shake_hands(const std::string& host, SSL_CTX* tls, Deadline deadline) {
  ssl_.reset(SSL_new(tls));
  if (!ssl_ || SSL_set_fd(ssl_.get(), fd_.get()) != 1) return fail(ErrorKind::failed, "TLS: {}", tls_reason());
  std::uint8_t bytes[16];
  const bool number = ::inet_pton(AF_INET, host.c_str(), bytes) == 1 || ::inet_pton(AF_INET6, host.c_str(), bytes) == 1;
  X509_VERIFY_PARAM* wanted = SSL_get0_param(ssl_.get());
  const bool set =
      number ? X509_VERIFY_PARAM_set1_ip_asc(wanted, host.c_str()) == 1
             : SSL_set1_host(ssl_.get(), host.c_str()) == 1 && SSL_set_tlsext_host_name(ssl_.get(), host.c_str()) == 1;
  if (!set) return fail(ErrorKind::failed, "TLS: {}", tls_reason());
  for (;;) {
    ERR_clear_error();
    const int code = SSL_connect(ssl_.get());
    if (code == 1) return {};
    if (const long verdict = SSL_get_verify_result(ssl_.get()); verdict != X509_V_OK)
      return fail(ErrorKind::unreachable, "its certificate: {}", X509_verify_cert_error_string(verdict));
    TRY(wait_tls(code, "TLS", deadline));
  }
}

Result<void> Connection::wait_tls(int code, std::string_view what, Deadline deadline) const {
  switch (SSL_get_error(ssl_.get(), code)) {
    case SSL_ERROR_WANT_READ:
      return wait_for(fd_.get(), POLLIN, deadline);
    case SSL_ERROR_WANT_WRITE:
      return wait_for(fd_.get(), POLLOUT, deadline);
    case SSL_ERROR_SYSCALL:
      return broken(what);
    default:
      return fail(ErrorKind::unreachable, "{}: {}", what, tls_reason());
  }
}

Result<void> Connection::write(std::string_view bytes, Deadline deadline) {
  while (!bytes.empty()) {
    if (ssl_) {
      ERR_clear_error();
      std::size_t sent = 0;
      const int code = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &sent);
      if (code == 1)
        bytes.remove_prefix(sent);
      else
        TRY(wait_tls(code, "send", deadline));
      continue;
    }
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0)
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    else if (errno == EAGAIN)
      TRY(wait_for(fd_.get(), POLLOUT, deadline));
    else if (errno != EINTR)
      return broken("send");
  }
  return {};
}

Result<std::size_t> Connection::read(char* data, std::size_t size, Deadline deadline) {
  for (;;) {
    if (ssl_) {
      ERR_clear_error();
      std::size_t got = 0;
      const int code = SSL_read_ex(ssl_.get(), data, size, &got);
      if (code == 1) return got;
      if (SSL_get_error(ssl_.get(), code) == SSL_ERROR_ZERO_RETURN) return std::size_t{0};
      TRY(wait_tls(code, "receive", deadline));
      continue;
    }
    const ssize_t got = ::recv(fd_.get(), data, size, 0);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == EAGAIN)
      TRY(wait_for(fd_.get(), POLLIN, deadline));
    else if (errno != EINTR)
      return broken("receive");
  }
}

}  // namespace godwit::store
