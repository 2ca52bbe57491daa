#pragma once

#include <openssl/ssl.h>

#include "base/stream.hpp"
#include "node/certificate.hpp"
#include "node/config.hpp"

/// TLS 1.3 between nodes that have certificates of the same authority.
namespace godwit::node::pki {

using Context = std::unique_ptr<SSL_CTX, Freer<SSL_CTX_free>>;

/// What a node shows, and whom it trusts: the files of [tls] as they were at one moment.
class Credentials {
 public:
  /// Reads and checks them: that they belong together, and that the certificate is `node`'s. Not whether it is good
  /// now, so that a daemon can say so instead of not starting.
  static Result<std::shared_ptr<const Credentials>> load(const Config::Tls&, const std::string& node);
  /// The same node with another list. `invalid` when the authority hasn't signed it.
  [[nodiscard]] Result<std::shared_ptr<const Credentials>> with(Expelled) const;
  /// The same node with another certificate for the same key. `invalid` when it is none.
  [[nodiscard]] Result<std::shared_ptr<const Credentials>> with(Certificate) const;

  /// `refused` when others won't trust the certificate now: it has run out, isn't good yet, or was expelled.
  [[nodiscard]] Result<void> usable() const;

  [[nodiscard]] X509* certificate() const { return certificate_.get(); }
  [[nodiscard]] X509* authority() const { return authority_.get(); }
  [[nodiscard]] EVP_PKEY* key() const { return key_.get(); }
  [[nodiscard]] X509_CRL* expelled() const { return expelled_.get(); }
  [[nodiscard]] SSL_CTX* context() const { return context_.get(); }

 private:
  Credentials(Certificate authority, Certificate certificate, Key key, Expelled expelled)
      : authority_(std::move(authority)),
        certificate_(std::move(certificate)),
        key_(std::move(key)),
        expelled_(std::move(expelled)) {}
  static Result<std::shared_ptr<const Credentials>> finish(std::shared_ptr<Credentials>, const std::string& node);

  Certificate authority_, certificate_;
  Key key_;
  Expelled expelled_;
  Context context_;
};

/// Writes what a node needs, all PEM: the authority's certificate, its list, and the node's own key and certificate.
Result<void> install(const Config::Tls&, const std::string& authority, const std::string& expelled,
                     const std::string& key, const std::string& certificate);

/// What the other side has shown.
struct Shown {
  Certificate certificate;  ///< null: none
  long code = 0;            ///< X509_V_OK, or what is wrong with it
};

/// Why a certificate isn't trusted, with what to do. `whose`: "our certificate", "the certificate of node b".
Error distrust(const Shown&, const std::string& whose);

/// Our side of a handshake with a node that must be `peer`. `refused` with the reason when it isn't, or isn't trusted.
Result<Stream> secure_to(Fd, const Credentials&, const std::string& peer, Deadline);
/// The other half. The caller is let through whatever it has shown, so that it can be told in words why it isn't
/// welcome: look at `shown` before anything else.
Result<Stream> secure_from(Fd, const Credentials&, Shown& shown, Deadline);
/// Without a certificate, to a node of the cluster whose authority has this fingerprint.
Result<Stream> secure_as_stranger(Fd, const std::string& fingerprint, Shown& shown, Deadline);

/// A key that nobody but the two ends of this session has (RFC 8446, 7.5).
Result<std::string> session_key(const Stream&);
/// Of the other side, when it has shown one; null without TLS.
X509* shown_certificate(const Stream&);

}  // namespace godwit::node::pki
