#include "base/stream.hpp"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/interruptible.hpp"

namespace godwit {
namespace {

constexpr std::size_t record = 16 * 1024;       ///< the largest that TLS has
constexpr std::size_t read_ahead = 8 * record;  ///< from the socket in one call
constexpr std::size_t flush_size = 128 * 1024;  ///< to the socket in one call
constexpr std::uint64_t key_life = 1ULL << 36;  ///< bytes under one key: AES-GCM is good for some 2^38 (RFC 8446, 5.5)

constexpr std::chrono::milliseconds look_interval{50};  ///< at the flag of who is interruptible

int poll_time(Deadline deadline) {
  if (deadline == Deadline::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<long>(left, 0, 3600 * 1000));
}

/// Sends all of `parts`, and changes them while it does.
Result<void> send_all(int socket, iovec* parts, std::size_t count, Deadline deadline) {
  const int flags = MSG_NOSIGNAL | (deadline == Deadline::max() ? 0 : MSG_DONTWAIT);
  while (count > 0) {
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = std::min<std::size_t>(count, IOV_MAX);
    const ssize_t sent = ::sendmsg(socket, &message, flags);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return fail_errno("send");
      TRY(wait_for(socket, POLLOUT, deadline));
      continue;
    }
    auto left = static_cast<std::size_t>(sent);
    while (count > 0 && left >= parts->iov_len) {
      left -= parts->iov_len;
      ++parts;
      --count;
    }
    if (count == 0) break;
    parts->iov_base = static_cast<std::uint8_t*>(parts->iov_base) + left;
    parts->iov_len -= left;
  }
  return {};
}

}  // namespace

Result<void> wait_for(int fd, short events, Deadline deadline) {
  const std::atomic<bool>* cancelled = Interruptible::flag();
  for (;;) {
    if (cancelled != nullptr && *cancelled) return fail(ErrorKind::cancelled, "cancelled");
    const Deadline look = cancelled != nullptr ? std::chrono::steady_clock::now() + look_interval : deadline;
    pollfd poll{fd, events, 0};
    const int ready = ::poll(&poll, 1, poll_time(std::min(look, deadline)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno("poll");
    if (std::chrono::steady_clock::now() >= deadline) return fail(ErrorKind::timeout, "no answer in time");
  }
}

void Stream::FreeSsl::operator()(SSL* ssl) const {
  SSL_free(ssl);
}

/// A session and what is between it and the socket. OpenSSL's object is for one thread at a time: it is locked while it
/// computes and never while anybody waits, so what it has to say goes into memory first.
struct Stream::Tls {
  Session ssl;
  int socket = -1;
  std::mutex mutex;                    ///< guards `ssl`, `outgoing` and `trouble`
  std::mutex sending;                  ///< held from a record's encryption until it is sent: they arrive in that order
  std::vector<std::uint8_t> outgoing;  ///< encrypted, in order
  std::vector<std::uint8_t> leaving;   ///< being sent; guarded by `sending`. The two change places.
  std::string trouble;                 ///< TLS's own words for what went wrong
  std::uint64_t under_key = 0;         ///< bytes sent

  static Tls& of(BIO* bio) { return *static_cast<Tls*>(BIO_get_data(bio)); }

  static const BIO_METHOD* method() {
    static BIO_METHOD* const made = [] {
      BIO_METHOD* bio = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "godwit");
      BIO_meth_set_read(bio, [](BIO* self, char* data, int size) {
        BIO_clear_retry_flags(self);
        const auto got = static_cast<int>(::recv(of(self).socket, data, static_cast<std::size_t>(size), MSG_DONTWAIT));
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(self);
        return got;
      });
      BIO_meth_set_write(bio, [](BIO* self, const char* data, int size) {
        auto& out = of(self).outgoing;
        // As bytes of the vector's own kind: other ones are copied one by one.
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(data);
        out.insert(out.end(), bytes, bytes + size);
        return size;
      });
      BIO_meth_set_ctrl(bio, [](BIO*, int command, long, void*) -> long { return command == BIO_CTRL_FLUSH ? 1 : 0; });
      BIO_meth_set_create(bio, [](BIO* self) {
        BIO_set_init(self, 1);
        return 1;
      });
      return bio;
    }();
    return made;
  }

  Tls(Session session, int fd) : ssl(std::move(session)), socket(fd) {
    BIO* bio = BIO_new(method());
    BIO_set_data(bio, this);
    SSL_set_bio(ssl.get(), bio, bio);
    SSL_set_read_ahead(ssl.get(), 1);
    SSL_set_default_read_buffer_len(ssl.get(), read_ahead);
  }

  /// Why the last call on the session failed, as an errno; EAGAIN when it only wants more bytes. The mutex is held.
  int why(int outcome) {
    const int code = errno;
    switch (SSL_get_error(ssl.get(), outcome)) {
      case SSL_ERROR_WANT_READ:
      case SSL_ERROR_WANT_WRITE:
        return EAGAIN;
      case SSL_ERROR_SYSCALL:
        ERR_clear_error();
        // The socket's end without a goodbye: somebody cut it off.
        return code == 0 ? ECONNRESET : code;
      default:
        break;
    }
    const unsigned long error = ERR_peek_last_error();
    if (error == 0) return ECONNRESET;
    if (ERR_GET_REASON(error) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
      ERR_clear_error();
      return ECONNRESET;
    }
    const char* reason = ERR_reason_error_string(error);
    trouble = reason != nullptr ? reason : "TLS failed";
    ERR_clear_error();
    return EPROTO;
  }

  /// Sends what is encrypted, once it is `enough`. `sending` is held.
  Result<void> flush(std::size_t enough, Deadline deadline) {
    {
      const std::scoped_lock lock(mutex);
      if (outgoing.size() < enough) return {};
      leaving.clear();
      leaving.swap(outgoing);
    }
    iovec part{leaving.data(), leaving.size()};
    return send_all(socket, &part, 1, deadline);
  }

  /// Says what the session has to say by itself (a goodbye) if there is room for it.
  void say_goodbye() {
    const std::scoped_lock lock(sending, mutex);
    ERR_clear_error();
    if (SSL_is_init_finished(ssl.get()) == 1) SSL_shutdown(ssl.get());
    ERR_clear_error();
    if (!outgoing.empty()) (void)!::send(socket, outgoing.data(), outgoing.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    outgoing.clear();
  }

  Result<void> encrypt(const std::uint8_t* data, std::size_t size) {
    const std::scoped_lock lock(mutex);
    ERR_clear_error();
    under_key += size;
    if (under_key > key_life) {
      SSL_key_update(ssl.get(), SSL_KEY_UPDATE_NOT_REQUESTED);
      under_key = 0;
    }
    errno = 0;
    const int done = SSL_write(ssl.get(), data, static_cast<int>(size));
    if (done > 0) return {};
    errno = why(done);
    return fail_errno("send");
  }

  Result<void> write(std::span<const iovec> parts, Deadline deadline) {
    const std::scoped_lock order(sending);
    std::array<std::uint8_t, record> gathered;
    std::size_t filled = 0;
    for (const auto& part : parts) {
      const auto* at = static_cast<const std::uint8_t*>(part.iov_base);
      for (std::size_t left = part.iov_len; left > 0;) {
        // Whole records are encrypted from where they are; small parts share one.
        if (filled == 0 && left >= record) {
          TRY(encrypt(at, record));
          TRY(flush(flush_size, deadline));
          at += record;
          left -= record;
          continue;
        }
        const std::size_t take = std::min(left, record - filled);
        std::memcpy(gathered.data() + filled, at, take);
        filled += take;
        at += take;
        left -= take;
        if (filled < record) continue;
        TRY(encrypt(gathered.data(), filled));
        TRY(flush(flush_size, deadline));
        filled = 0;
      }
    }
    if (filled > 0) TRY(encrypt(gathered.data(), filled));
    return flush(1, deadline);
  }

  ssize_t receive(void* data, std::size_t size, bool peek) {
    int code = 0;
    {
      const std::scoped_lock lock(mutex);
      ERR_clear_error();
      errno = 0;
      const int most = static_cast<int>(std::min<std::size_t>(size, 1 << 30));
      const int got = peek ? SSL_peek(ssl.get(), data, most) : SSL_read(ssl.get(), data, most);
      if (got > 0) return got;
      if (SSL_get_error(ssl.get(), got) == SSL_ERROR_ZERO_RETURN) return 0;
      code = why(got);
    }
    errno = code;
    return -1;
  }
};

Stream::Stream() = default;
Stream::Stream(Fd socket) : socket_(std::move(socket)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&& other) noexcept {
  const Stream old(std::move(*this));
  socket_ = std::move(other.socket_);
  tls_ = std::move(other.tls_);
  return *this;
}

Stream::~Stream() {
  if (tls_) tls_->say_goodbye();
}

SSL* Stream::session() const {
  return tls_ ? tls_->ssl.get() : nullptr;
}

Result<Stream> Stream::secure(Fd socket, Session session, Deadline deadline) {
  Stream stream(std::move(socket));
  stream.tls_ = std::make_unique<Tls>(std::move(session), stream.fd());
  Tls& tls = *stream.tls_;
  for (;;) {
    ERR_clear_error();
    errno = 0;
    const int done = SSL_do_handshake(tls.ssl.get());
    const int code = done == 1 ? 0 : tls.why(done);
    // An alert, too: of the two errors the one that it tells of is the more important.
    const auto sent = tls.flush(1, deadline);
    if (!sent && (code == 0 || code == EAGAIN)) {
      if (sent.error().kind == ErrorKind::timeout) return std::unexpected(sent.error());
      return std::unexpected(stream.broken("TLS handshake", sent.error().code));
    }
    if (done == 1) return stream;
    if (code == EAGAIN) {
      TRY(wait_for(stream.fd(), POLLIN, deadline));
      continue;
    }
    Error error = stream.broken("TLS handshake", code);
    if (code == EPROTO) error.kind = ErrorKind::refused;
    return std::unexpected(std::move(error));
  }
}

ssize_t Stream::receive(void* data, std::size_t size, bool peek) {
  if (tls_) return tls_->receive(data, size, peek);
  for (;;) {
    const ssize_t got = ::recv(fd(), data, size, MSG_DONTWAIT | (peek ? MSG_PEEK : 0));
    if (got >= 0 || errno != EINTR) return got;
  }
}

bool Stream::ready() {
  if (!tls_) return false;
  {
    // A whole record may have been read from the socket and not been looked at yet; a part of one isn't anything.
    const std::scoped_lock lock(tls_->mutex);
    if (SSL_has_pending(tls_->ssl.get()) == 0) return false;
  }
  std::uint8_t byte = 0;
  return receive(&byte, 1, true) >= 0 || errno != EAGAIN;
}

Result<void> Stream::write(std::span<const iovec> parts, Deadline deadline) {
  std::vector<iovec> own;
  Result<void> done;
  if (tls_) {
    done = tls_->write(parts, deadline);
  } else if (parts.size() <= 2) {
    std::array<iovec, 2> few;
    std::ranges::copy(parts, few.begin());
    done = send_all(fd(), few.data(), parts.size(), deadline);
  } else {
    own.assign(parts.begin(), parts.end());
    done = send_all(fd(), own.data(), own.size(), deadline);
  }
  if (done || done.error().kind == ErrorKind::timeout) return done;
  return std::unexpected(broken("send", done.error().code));
}

void Stream::end() {
  if (tls_) tls_->say_goodbye();
  ::shutdown(fd(), SHUT_WR);
}

Error Stream::broken(const std::string& what, int code) const {
  if (tls_ && code == EPROTO) {
    const std::scoped_lock lock(tls_->mutex);
    if (!tls_->trouble.empty()) return {ErrorKind::unreachable, fmt::format("{}: TLS: {}", what, tls_->trouble), 0, {}};
  }
  return {ErrorKind::unreachable, what, code, {}};
}

}  // namespace godwit
