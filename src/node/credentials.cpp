#include "node/credentials.hpp"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <sys/stat.h>

#include <filesystem>

#include "node/authority.hpp"
#include "node/files.hpp"

namespace godwit::node::pki {
namespace {

using Store = std::unique_ptr<X509_STORE, Freer<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Freer<X509_STORE_CTX_free>>;

/// Where the verification of a session leaves what it saw. Lives as long as the handshake.
struct Look {
  Shown& shown;
  std::string fingerprint;  ///< of the only authority that is trusted; empty: that of the context
};

Certificate share(X509* certificate) {
  if (certificate != nullptr) X509_up_ref(certificate);
  return Certificate(certificate);
}

/// Trusts the one certificate of those that were shown whose fingerprint is known.
void trust_only(X509_STORE_CTX* store, const std::string& known, STACK_OF(X509) * trusted) {
  STACK_OF(X509)* shown = X509_STORE_CTX_get0_untrusted(store);
  for (int i = 0; i < sk_X509_num(shown); i++)
    if (fingerprint(sk_X509_value(shown, i)) == known) sk_X509_push(trusted, sk_X509_value(shown, i));
  X509_STORE_CTX_set0_trusted_stack(store, trusted);
}

int look_at(X509_STORE_CTX* store, void*) {
  auto* ssl = static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  auto* look = static_cast<Look*>(SSL_get_app_data(ssl));
  // Only a handshake shows certificates; none comes later.
  if (look == nullptr) return 0;
  STACK_OF(X509)* trusted = sk_X509_new_null();
  if (!look->fingerprint.empty()) trust_only(store, look->fingerprint, trusted);
  const bool good = X509_verify_cert(store) == 1;
  const int code = X509_STORE_CTX_get_error(store);
  sk_X509_free(trusted);
  look->shown.certificate = share(X509_STORE_CTX_get0_cert(store));
  look->shown.code = good ? X509_V_OK : (code == X509_V_OK ? X509_V_ERR_UNSPECIFIED : code);
  // A caller is told in words by the handshake above this one.
  return good || SSL_is_server(ssl) == 1 ? 1 : 0;
}

Result<Context> make_context() {
  Context context(SSL_CTX_new(TLS_method()));
  SSL_CTX* raw = context.get();
  // What is fast and good comes first. A session is never taken up again: each one looks at the certificates anew.
  if (!context || SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(raw, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") !=
          1 ||
      SSL_CTX_set_num_tickets(raw, 0) != 1)
    return openssl_failed("TLS");
  SSL_CTX_set_options(raw, SSL_OP_NO_TICKET);
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(raw, look_at, nullptr);
  return context;
}

/// A store that trusts the authority, and knows whom it has expelled.
Result<Store> make_store(X509* authority, X509_CRL* expelled) {
  Store store(X509_STORE_new());
  if (!store || X509_STORE_add_cert(store.get(), authority) != 1 || X509_STORE_add_crl(store.get(), expelled) != 1 ||
      X509_STORE_set_flags(store.get(), X509_V_FLAG_CRL_CHECK) != 1)
    return openssl_failed("TLS");
  return store;
}

/// As somebody else would see it.
Result<Shown> see(X509* certificate, X509_STORE* store) {
  const StoreContext context(X509_STORE_CTX_new());
  if (!context || X509_STORE_CTX_init(context.get(), store, certificate, nullptr) != 1) return openssl_failed("TLS");
  const bool good = X509_verify_cert(context.get()) == 1;
  const long code = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  return Shown{share(certificate), good ? X509_V_OK : code};
}

Result<void> check_list(X509_CRL* list, X509* authority) {
  if (X509_CRL_verify(list, X509_get0_pubkey(authority)) == 1 && number_of(list) > 0) return {};
  ERR_clear_error();
  return fail(ErrorKind::invalid, "the list of the expelled isn't signed by the cluster's authority");
}

Result<std::string> read_pem(const std::string& path, std::size_t limit, bool secret = false) {
  auto text = read_whole(path, limit, secret);
  if (!text && text.error().code == ENOENT)
    return std::unexpected(Error{
        ErrorKind::not_found, fmt::format("{} doesn't exist", path), 0,
        "on the first node of a cluster: godwit pki init; on the others: godwit pki token on the first, then godwit "
        "join here"});
  return text;
}

template <typename T>
Result<T> named(Result<T> value, const std::string& path) {
  if (!value) return std::unexpected(std::move(value.error()).within(path));
  return value;
}

Result<Stream> shake(Fd socket, SSL_CTX* context, bool accept, Look look, Deadline deadline) {
  Stream::Session session(SSL_new(context));
  if (!session) return openssl_failed("TLS");
  SSL* raw = session.get();
  SSL_set_app_data(raw, &look);
  accept ? SSL_set_accept_state(raw) : SSL_set_connect_state(raw);
  auto stream = Stream::secure(std::move(socket), std::move(session), deadline);
  if (stream) SSL_set_app_data(stream->session(), nullptr);
  return stream;
}

std::unexpected<Error> explain(Error error, const Shown& shown, const std::string& whose) {
  if (shown.certificate && shown.code != X509_V_OK) return std::unexpected(distrust(shown, whose));
  if (error.kind == ErrorKind::refused)
    error.hint = "does the node there have plain = true in its config, or is it another program?";
  return std::unexpected(std::move(error));
}

}  // namespace

Result<std::shared_ptr<const Credentials>> Credentials::finish(std::shared_ptr<Credentials> made,
                                                               const std::string& node) {
  X509* own = made->certificate_.get();
  if (X509_check_private_key(own, made->key_.get()) != 1) {
    ERR_clear_error();
    return fail(ErrorKind::invalid, "the key is not that of the certificate");
  }
  TRY(check_list(made->expelled_.get(), made->authority_.get()));
  const Store store = TRY(make_store(made->authority_.get(), made->expelled_.get()));
  const Shown seen = TRY(see(own, store.get()));
  const bool later = seen.code == X509_V_ERR_CERT_HAS_EXPIRED || seen.code == X509_V_ERR_CERT_NOT_YET_VALID ||
                     seen.code == X509_V_ERR_CERT_REVOKED || seen.code == X509_V_ERR_CRL_NOT_YET_VALID;
  if (seen.code != X509_V_OK && !later) return std::unexpected(distrust(seen, "our certificate"));
  if (name_of(own) != node)
    return std::unexpected(Error{
        ErrorKind::invalid, fmt::format("the certificate is that of node '{}', and this is '{}'", name_of(own), node),
        0, "give this node its own name in the config, or let it join under this one"});
  made->context_ = TRY(make_context());
  SSL_CTX* raw = made->context_.get();
  SSL_CTX_set1_cert_store(raw, store.get());
  // The authority's certificate goes along: a new node knows it by its fingerprint only.
  if (SSL_CTX_use_certificate(raw, own) != 1 || SSL_CTX_use_PrivateKey(raw, made->key_.get()) != 1 ||
      SSL_CTX_add1_chain_cert(raw, made->authority_.get()) != 1)
    return openssl_failed("TLS");
  return made;
}

Result<std::shared_ptr<const Credentials>> Credentials::load(const Config::Tls& tls, const std::string& node) {
  const std::string list = expelled_beside(tls.authority);
  auto authority = TRY(named(parse_certificate(TRY(read_pem(tls.authority, pem_limit))), tls.authority));
  auto certificate = TRY(named(parse_certificate(TRY(read_pem(tls.certificate, pem_limit))), tls.certificate));
  auto key = TRY(named(parse_key(TRY(read_pem(tls.key, pem_limit, true))), tls.key));
  auto expelled = TRY(named(parse_expelled(TRY(read_pem(list, list_limit))), list));
  std::shared_ptr<Credentials> made(
      new Credentials(std::move(authority), std::move(certificate), std::move(key), std::move(expelled)));
  return named(finish(std::move(made), node), tls.certificate);
}

Result<std::shared_ptr<const Credentials>> Credentials::with(Expelled list) const {
  Key key(key_.get());
  EVP_PKEY_up_ref(key_.get());
  return finish(std::shared_ptr<Credentials>(new Credentials(share(authority_.get()), share(certificate_.get()),
                                                             std::move(key), std::move(list))),
                name_of(certificate_.get()));
}

Result<std::shared_ptr<const Credentials>> Credentials::with(Certificate certificate) const {
  Key key(key_.get());
  EVP_PKEY_up_ref(key_.get());
  X509_CRL_up_ref(expelled_.get());
  return finish(std::shared_ptr<Credentials>(new Credentials(share(authority_.get()), std::move(certificate),
                                                             std::move(key), Expelled(expelled_.get()))),
                name_of(certificate_.get()));
}

Result<void> Credentials::usable() const {
  const Store store = TRY(make_store(authority_.get(), expelled_.get()));
  const Shown seen = TRY(see(certificate_.get(), store.get()));
  if (seen.code == X509_V_OK) return {};
  return std::unexpected(distrust(seen, "our certificate"));
}

Result<void> install(const Config::Tls& files, const std::string& authority, const std::string& expelled,
                     const std::string& key, const std::string& certificate) {
  for (const auto& path : {files.authority, files.key, files.certificate}) {
    const auto directory = std::filesystem::path(path).parent_path();
    std::error_code error;
    if (std::filesystem::exists(directory, error)) continue;
    TRY(make_directory(directory, 0700));
  }
  TRY(replace_file(files.authority, authority, 0644));
  TRY(replace_file(expelled_beside(files.authority), expelled, 0644));
  TRY(replace_file(files.key, key, 0600));
  return replace_file(files.certificate, certificate, 0644);
}

Error distrust(const Shown& shown, const std::string& whose) {
  const auto now = [] { return to_text(Clock::now()); };
  const auto refused = [](std::string what, std::string hint) {
    return Error{ErrorKind::refused, std::move(what), 0, std::move(hint)};
  };
  if (!shown.certificate)
    return refused(fmt::format("{} is missing", whose), "a new node needs godwit join --token first");
  const Life life = life_of(shown.certificate.get());
  switch (shown.code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return refused(fmt::format("{} was good until {}, and the clock here says {}", whose, to_text(life.end), now()),
                     "if the clock is right: a new token (godwit pki token) and godwit join with it on that node");
    case X509_V_ERR_CERT_NOT_YET_VALID:
    case X509_V_ERR_CRL_NOT_YET_VALID:
      return refused(
          fmt::format("{} is good from {} on, and the clock here says {}", whose, to_text(life.begin), now()),
          "set the nodes' clocks (chrony, systemd-timesyncd)");
    case X509_V_ERR_CERT_REVOKED:
      return refused(fmt::format("{} was expelled from the cluster", whose),
                     "a new token (godwit pki token) and godwit join with it on that node let it in again");
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_UNABLE_TO_GET_CRL:
      return refused(fmt::format("{} is of another authority than this node's", whose),
                     "a node belongs to one cluster: godwit join brings it into another");
    default:
      return refused(fmt::format("{}: {}", whose, X509_verify_cert_error_string(shown.code)), {});
  }
}

Result<Stream> secure_to(Fd socket, const Credentials& credentials, const std::string& peer, Deadline deadline) {
  Shown shown;
  auto stream = shake(std::move(socket), credentials.context(), false, {shown, {}}, deadline);
  const std::string whose = fmt::format("the certificate of node {}", peer);
  if (!stream) return explain(std::move(stream.error()), shown, whose);
  if (shown.code != X509_V_OK || !shown.certificate) return std::unexpected(distrust(shown, whose));
  const std::string name = name_of(shown.certificate.get());
  if (name != peer)
    return std::unexpected(Error{ErrorKind::refused,
                                 fmt::format("node '{}' answers there, not '{}'", name.empty() ? "?" : name, peer), 0,
                                 "compare the peers' addresses in the config"});
  return stream;
}

Result<Stream> secure_from(Fd socket, const Credentials& credentials, Shown& shown, Deadline deadline) {
  return shake(std::move(socket), credentials.context(), true, {shown, {}}, deadline);
}

Result<Stream> secure_as_stranger(Fd socket, const std::string& fingerprint, Shown& shown, Deadline deadline) {
  const Context context = TRY(make_context());
  auto stream = shake(std::move(socket), context.get(), false, {shown, fingerprint}, deadline);
  if (!stream) return explain(std::move(stream.error()), shown, "the certificate of that node");
  if (shown.code != X509_V_OK || !shown.certificate)
    return std::unexpected(distrust(shown, "the certificate of that node"));
  return stream;
}

Result<std::string> session_key(const Stream& stream) {
  constexpr std::string_view label = "EXPORTER-godwit-handshake";
  std::string key(32, '\0');
  if (stream.session() == nullptr ||
      SSL_export_keying_material(stream.session(), reinterpret_cast<std::uint8_t*>(key.data()), key.size(),
                                 label.data(), label.size(), nullptr, 0, 0) != 1)
    return openssl_failed("TLS");
  return key;
}

X509* shown_certificate(const Stream& stream) {
  return stream.session() == nullptr ? nullptr : SSL_get0_peer_certificate(stream.session());
}

}  // namespace godwit::node::pki
