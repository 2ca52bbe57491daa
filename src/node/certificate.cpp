#include "node/certificate.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <climits>
#include <ctime>

#include "node/config.hpp"

namespace godwit::node::pki {
namespace {

using Memory = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freer<X509_EXTENSION_free>>;
using Number = std::unique_ptr<BIGNUM, Freer<BN_free>>;
using Integer = std::unique_ptr<ASN1_INTEGER, Freer<ASN1_INTEGER_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Freer<GENERAL_NAMES_free>>;

constexpr std::string_view label_scheme = "godwit:label:";
constexpr std::size_t label_limit = 128;

template <typename Write>
std::string write_pem(Write write) {
  const Memory memory(BIO_new(BIO_s_mem()));
  write(memory.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}

/// What `read` finds in the text, or null.
template <typename Owner, typename Read>
Result<Owner> parse(const std::string& pem, std::size_t limit, const char* what, Read read) {
  if (pem.size() > limit) return fail(ErrorKind::invalid, "{}: longer than {} bytes", what, limit);
  const Memory memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  // Without a callback OpenSSL asks the terminal for the password of an encrypted key.
  const auto no_password = [](char*, int, int, void*) { return 0; };
  Owner owner(read(memory.get(), nullptr, no_password, nullptr));
  ERR_clear_error();
  if (!owner) return fail(ErrorKind::invalid, "not {}", what);
  return owner;
}

bool our_kind(EVP_PKEY* key) {
  std::array<char, 64> group{};
  std::size_t size = 0;
  return key != nullptr && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC &&
         EVP_PKEY_get_group_name(key, group.data(), group.size(), &size) == 1 &&
         std::string_view(group.data(), size) == "prime256v1";
}

std::unexpected<Error> other_kind(const char* what) {
  ERR_clear_error();
  return std::unexpected(Error{ErrorKind::invalid, fmt::format("{}: its key is not ECDSA over P-256", what), 0,
                               "godwit uses no other kind"});
}

std::string_view text_of(const ASN1_STRING* text) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
          static_cast<std::size_t>(ASN1_STRING_length(text))};
}

Names names_of(X509* certificate) {
  return Names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
}

std::string hex_of(const ASN1_INTEGER* integer) {
  const Number number(ASN1_INTEGER_to_BN(integer, nullptr));
  char* text = BN_bn2hex(number.get());
  std::string hex(text != nullptr ? text : "");
  OPENSSL_free(text);
  return hex;
}

Result<void> add_name(GENERAL_NAMES* names, int kind, const std::string& text) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* value = ASN1_IA5STRING_new();
  if (name == nullptr || value == nullptr || ASN1_STRING_set(value, text.data(), static_cast<int>(text.size())) != 1)
    return openssl_failed("make a certificate");
  GENERAL_NAME_set0_value(name, kind, value);
  if (sk_GENERAL_NAME_push(names, name) == 0) return openssl_failed("make a certificate");
  return {};
}

}  // namespace

std::unexpected<Error> openssl_failed(std::string_view what) {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  ERR_clear_error();
  return fail(ErrorKind::failed, "{}: {}", what, reason != nullptr ? reason : "OpenSSL failed");
}

std::string to_hex(const std::uint8_t* data, std::size_t size) {
  std::string text;
  for (std::size_t i = 0; i < size; i++) text += fmt::format("{:02x}", data[i]);
  return text;
}

std::string sha256(const std::string& text) {
  std::array<std::uint8_t, SHA256_DIGEST_LENGTH> hash{};
  SHA256(reinterpret_cast<const std::uint8_t*>(text.data()), text.size(), hash.data());
  return to_hex(hash.data(), hash.size());
}

Result<Certificate> parse_certificate(const std::string& pem) {
  auto certificate = TRY(parse<Certificate>(pem, pem_limit, "a certificate", PEM_read_bio_X509));
  if (!our_kind(X509_get0_pubkey(certificate.get()))) return other_kind("the certificate");
  return certificate;
}

Result<Key> parse_key(const std::string& pem) {
  auto key = TRY(parse<Key>(pem, pem_limit, "a key", PEM_read_bio_PrivateKey));
  if (!our_kind(key.get())) return other_kind("the key");
  return key;
}

Result<Request> parse_request(const std::string& pem) {
  auto request = TRY(parse<Request>(pem, pem_limit, "a request for a certificate", PEM_read_bio_X509_REQ));
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (!our_kind(key)) return other_kind("the request");
  if (X509_REQ_verify(request.get(), key) != 1) {
    ERR_clear_error();
    return fail(ErrorKind::invalid, "the request for a certificate isn't signed with its own key");
  }
  return request;
}

Result<Expelled> parse_expelled(const std::string& pem) {
  return parse<Expelled>(pem, list_limit, "a list of the expelled", PEM_read_bio_X509_CRL);
}

std::string to_pem(X509* certificate) {
  return write_pem([&](BIO* to) { PEM_write_bio_X509(to, certificate); });
}
std::string to_pem(EVP_PKEY* key) {
  return write_pem([&](BIO* to) { PEM_write_bio_PrivateKey(to, key, nullptr, nullptr, 0, nullptr, nullptr); });
}
std::string to_pem(X509_REQ* request) {
  return write_pem([&](BIO* to) { PEM_write_bio_X509_REQ(to, request); });
}
std::string to_pem(X509_CRL* list) {
  return write_pem([&](BIO* to) { PEM_write_bio_X509_CRL(to, list); });
}

Result<Key> make_key() {
  Key key(EVP_EC_gen("P-256"));
  if (!key) return openssl_failed("make a key");
  return key;
}

Result<Request> make_request(EVP_PKEY* key) {
  Request request(X509_REQ_new());
  if (!request || X509_REQ_set_pubkey(request.get(), key) != 1 || X509_REQ_sign(request.get(), key, EVP_sha256()) == 0)
    return openssl_failed("make a request");
  return request;
}

std::string name_of(X509* certificate) {
  const Names names = names_of(certificate);
  std::string found;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); i++) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_DNS) continue;
    if (!found.empty()) return {};
    found = text_of(name->d.dNSName);
    if (!valid_name(found)) return {};
  }
  return found;
}

Labels labels_of(X509* certificate) {
  const Names names = names_of(certificate);
  Labels labels;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); i++) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const std::string_view text = text_of(name->d.uniformResourceIdentifier);
    if (!text.starts_with(label_scheme)) continue;
    if (const auto label = parse_label(std::string(text.substr(label_scheme.size())))) labels.insert(*label);
  }
  return labels;
}

std::string to_text(const Labels::value_type& label) {
  return label.second.empty() ? label.first : label.first + "=" + label.second;
}

Result<Labels::value_type> parse_label(const std::string& text) {
  const std::size_t equals = text.find('=');
  const bool printable = std::ranges::all_of(text, [](char c) { return c > ' ' && c < 0x7f; });
  if (text.size() > label_limit || !printable || equals == 0 || text.empty())
    return fail(ErrorKind::invalid, "'{}' can't be a label: NAME or NAME=VALUE, {} printable characters at most",
                text.substr(0, label_limit), label_limit);
  return Labels::value_type(text.substr(0, equals), equals == std::string::npos ? "" : text.substr(equals + 1));
}

Life life_of(X509* certificate) {
  const auto when = [](const ASN1_TIME* time) {
    std::tm parts{};
    ASN1_TIME_to_tm(time, &parts);
    return Clock::from_time_t(::timegm(&parts));
  };
  return {when(X509_get0_notBefore(certificate)), when(X509_get0_notAfter(certificate))};
}

Clock::time_point thirds_over(X509* certificate, int thirds) {
  const auto [begin, end] = life_of(certificate);
  return end - (end - begin - skew) * (3 - thirds) / 3;
}

std::string to_text(Clock::time_point when) {
  const std::time_t seconds = Clock::to_time_t(when);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  std::array<char, 64> text{};
  (void)std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text.data();
}

std::string serial_of(X509* certificate) {
  return hex_of(X509_get0_serialNumber(certificate));
}

std::string fingerprint(X509* certificate) {
  std::array<std::uint8_t, EVP_MAX_MD_SIZE> hash{};
  unsigned size = 0;
  X509_digest(certificate, EVP_sha256(), hash.data(), &size);
  return to_hex(hash.data(), size);
}

std::uint64_t number_of(X509_CRL* list) {
  const Integer number(static_cast<ASN1_INTEGER*>(X509_CRL_get_ext_d2i(list, NID_crl_number, nullptr, nullptr)));
  std::uint64_t value = 0;
  if (!number || ASN1_INTEGER_get_uint64(&value, number.get()) != 1) return 0;
  return value;
}

std::set<std::string> serials_of(X509_CRL* list) {
  std::set<std::string> serials;
  STACK_OF(X509_REVOKED)* entries = X509_CRL_get_REVOKED(list);
  for (int i = 0; i < sk_X509_REVOKED_num(entries); i++)
    serials.insert(hex_of(X509_REVOKED_get0_serialNumber(sk_X509_REVOKED_value(entries, i))));
  return serials;
}

Result<void> extend(X509* certificate, X509* issuer, int kind, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) return openssl_failed("make a certificate");
  return {};
}

Result<Certificate> begin_certificate(const std::string& common_name, EVP_PKEY* key, Life life) {
  std::array<std::uint8_t, 16> bytes{};
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1)
    return fail(ErrorKind::failed, "no random numbers");
  bytes[0] = (bytes[0] & 0x7f) | 0x40;  // positive, and of one length
  const Number number(BN_bin2bn(bytes.data(), static_cast<int>(bytes.size()), nullptr));
  Certificate certificate(X509_new());
  X509* raw = certificate.get();
  const auto set = [](ASN1_TIME* time, Clock::time_point when) {
    return ASN1_TIME_set(time, Clock::to_time_t(when)) != nullptr;
  };
  const auto* name = reinterpret_cast<const std::uint8_t*>(common_name.c_str());
  if (!certificate || BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(raw)) == nullptr ||
      X509_set_version(raw, X509_VERSION_3) != 1 || !set(X509_getm_notBefore(raw), life.begin) ||
      !set(X509_getm_notAfter(raw), life.end) || X509_set_pubkey(raw, key) != 1 ||
      X509_NAME_add_entry_by_NID(X509_get_subject_name(raw), NID_commonName, MBSTRING_ASC, name, -1, -1, 0) != 1)
    return openssl_failed("make a certificate");
  return certificate;
}

Result<void> add_names(X509* certificate, const std::string& name, const Labels& labels) {
  const Names names(GENERAL_NAMES_new());
  TRY(add_name(names.get(), GEN_DNS, name));
  for (const auto& label : labels) TRY(add_name(names.get(), GEN_URI, std::string(label_scheme) + to_text(label)));
  if (X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, 0) != 1)
    return openssl_failed("make a certificate");
  return {};
}

}  // namespace godwit::node::pki
