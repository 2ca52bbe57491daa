#include "node/trust.hpp"

#include <sys/socket.h>

#include <map>

#include "base/log.hpp"
#include "node/authority.hpp"
#include "node/files.hpp"
#include "node/io.hpp"

namespace godwit::node {

using pki::Credentials;

/// The sessions that are open, by the certificate that the other side has shown.
struct Trust::Connections : std::enable_shared_from_this<Trust::Connections> {
  struct Open {
    int socket;
    std::string serial;
  };
  std::mutex mutex;
  std::map<const SSL*, Open> open;

  /// Sessions end by themselves, wherever their streams have gone: OpenSSL calls `forget`, before the socket is closed.
  static int index() {
    static const int made = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, forget);
    return made;
  }

  static void forget(void* ssl, void* value, CRYPTO_EX_DATA*, int, long, void*) {
    const std::unique_ptr<std::shared_ptr<Connections>> of(static_cast<std::shared_ptr<Connections>*>(value));
    if (!of) return;
    const std::lock_guard lock((*of)->mutex);
    (*of)->open.erase(static_cast<const SSL*>(ssl));
  }

  void add(const Stream& stream, std::string serial) {
    const std::lock_guard lock(mutex);
    open[stream.session()] = {stream.fd(), std::move(serial)};
    SSL_set_ex_data(stream.session(), index(), new std::shared_ptr<Connections>(shared_from_this()));
  }

  /// Breaks off those whose certificate is among them.
  std::size_t close(const std::set<std::string>& serials) {
    const std::lock_guard lock(mutex);
    std::size_t closed = 0;
    for (const auto& [ssl, one] : open)
      if (serials.contains(one.serial)) {
        ::shutdown(one.socket, SHUT_RDWR);
        closed++;
      }
    return closed;
  }
};

Result<std::unique_ptr<Trust>> Trust::open(const Config& config) {
  std::unique_ptr<Trust> trust(new Trust(config.node, *config.tls));
  trust->credentials_ = TRY(Credentials::load(trust->files_, config.node));
  trust->connections_ = std::make_shared<Connections>();
  return trust;
}

std::shared_ptr<const Credentials> Trust::credentials() const {
  const std::lock_guard lock(mutex_);
  return credentials_;
}

bool Trust::keep(const Stream& stream) const {
  const std::string serial = pki::serial_of(pki::shown_certificate(stream));
  connections_->add(stream, serial);
  // Looked at after it was added: a list that comes in between is seen by one of the two.
  return !pki::serials_of(credentials()->expelled()).contains(serial);
}

Result<Stream> Trust::connect(Fd socket, const std::string& peer, Deadline deadline) const {
  const auto now = credentials();
  Stream stream = TRY(pki::secure_to(std::move(socket), *now, peer, deadline));
  if (!keep(stream)) return fail(ErrorKind::refused, "node {} was expelled from the cluster", peer);
  return stream;
}

Result<Trust::Guest> Trust::accept(Fd socket, Deadline deadline) const {
  const auto now = credentials();
  pki::Shown shown;
  Guest guest{.stream = TRY(pki::secure_from(std::move(socket), *now, shown, deadline)), .name = {}, .objection = {}};
  if (!shown.certificate) return guest;
  guest.name = pki::name_of(shown.certificate.get());
  if (shown.code == X509_V_OK && !keep(guest.stream)) shown.code = X509_V_ERR_CERT_REVOKED;
  if (shown.code != X509_V_OK) {
    const Error why = pki::distrust(shown, "the caller's certificate");
    guest.objection = why.hint.empty() ? why.what : why.what + "; " + why.hint;
  } else if (guest.name.empty()) {
    guest.objection = "the caller's certificate is not that of a node";
  }
  return guest;
}

void Trust::use(std::shared_ptr<const Credentials> next) {
  {
    const std::lock_guard lock(mutex_);
    credentials_ = std::move(next);
  }
  const std::size_t closed = connections_->close(pki::serials_of(credentials()->expelled()));
  if (closed > 0) log::warn("{} connections with expelled nodes were broken off", closed);
}

Result<bool> Trust::install(const std::string& list_pem) {
  const std::lock_guard changing(changing_);
  const auto now = credentials();
  auto list = TRY(pki::parse_expelled(list_pem));
  if (pki::number_of(list.get()) <= pki::number_of(now->expelled())) return false;
  const std::uint64_t number = pki::number_of(list.get());
  const std::size_t names = pki::serials_of(list.get()).size();
  auto next = TRY(now->with(std::move(list)));
  TRY(replace_file(pki::expelled_beside(files_.authority), list_pem, 0644));
  use(std::move(next));
  log::info("list {} of the expelled has {} certificates", number, names);
  return true;
}

Result<void> Trust::install(pki::Certificate certificate) {
  const std::lock_guard changing(changing_);
  const std::string pem = pki::to_pem(certificate.get());
  auto next = TRY(credentials()->with(std::move(certificate)));
  TRY(next->usable());
  TRY(replace_file(files_.certificate, pem, 0644));
  use(std::move(next));
  return {};
}

Result<void> Trust::reload() {
  const std::lock_guard changing(changing_);
  use(TRY(Credentials::load(files_, node_)));
  return {};
}

}  // namespace godwit::node
