#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "base/result.hpp"

/// Certificates, keys and the list of the expelled, in memory and as PEM. Keys are ECDSA over P-256.
namespace godwit::node::pki {

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freer<X509_free>>;
using Request = std::unique_ptr<X509_REQ, Freer<X509_REQ_free>>;
/// Certificates that are no longer good: numbered, and signed by the authority (an X.509 CRL).
using Expelled = std::unique_ptr<X509_CRL, Freer<X509_CRL_free>>;
using Labels = std::map<std::string, std::string>;
using Clock = std::chrono::system_clock;

inline constexpr std::size_t pem_limit = 16 * 1024;     ///< of a certificate, key or request
inline constexpr std::size_t list_limit = 1024 * 1024;  ///< of a list of the expelled
inline constexpr std::size_t labels_limit = 32;         ///< of one node
/// Clocks of a cluster may differ by so much: what is made now is good since then.
inline constexpr std::chrono::hours skew{1};

/// `invalid` when it isn't one, is too long, or isn't of a kind that we use.
Result<Certificate> parse_certificate(const std::string& pem);
Result<Key> parse_key(const std::string& pem);
Result<Request> parse_request(const std::string& pem);
Result<Expelled> parse_expelled(const std::string& pem);
std::string to_pem(X509*);
std::string to_pem(EVP_PKEY*);
std::string to_pem(X509_REQ*);
std::string to_pem(X509_CRL*);

Result<Key> make_key();
/// Signed, which shows that whoever asks has the key.
Result<Request> make_request(EVP_PKEY*);

/// Whose certificate it is: its DNS name, if it has exactly one that can be a node's; empty otherwise.
std::string name_of(X509*);
/// What the authority says of the node.
Labels labels_of(X509*);
/// A label as it is written: "secure", "zone=x".
std::string to_text(const Labels::value_type&);
/// `invalid` for what can't stand in a certificate: no name, too long, or more than printable ASCII.
Result<Labels::value_type> parse_label(const std::string&);

struct Life {
  Clock::time_point begin, end;
};
Life life_of(X509*);
/// When so many thirds of its life are over, from when it was made: it is good since a while before that.
Clock::time_point thirds_over(X509*, int thirds);
/// "2026-11-26 12:00:00 UTC"
std::string to_text(Clock::time_point);
/// In hex.
std::string serial_of(X509*);
/// SHA-256 of the whole certificate, in hex.
std::string fingerprint(X509*);

/// Which list it is: each newer one has a greater number.
std::uint64_t number_of(X509_CRL*);
std::set<std::string> serials_of(X509_CRL*);

/// The error that OpenSSL has just had.
std::unexpected<Error> openssl_failed(std::string_view what);
std::string to_hex(const std::uint8_t* data, std::size_t size);
std::string sha256(const std::string&);

/// A certificate's extensions that OpenSSL has words for: `value` is one of ours, never anybody's input.
Result<void> extend(X509* certificate, X509* issuer, int kind, const char* value);
/// A new certificate: number, name, key and life; no extension, no signature.
Result<Certificate> begin_certificate(const std::string& common_name, EVP_PKEY*, Life);
/// Name and labels, as subjectAltName.
Result<void> add_names(X509*, const std::string& name, const Labels&);

}  // namespace godwit::node::pki
