#include "node/authority.hpp"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <sstream>

#include "base/fd.hpp"
#include "base/random.hpp"
#include "node/config.hpp"
#include "node/files.hpp"

namespace godwit::node::pki {
namespace {

using Number = std::unique_ptr<BIGNUM, Freer<BN_free>>;
using Integer = std::unique_ptr<ASN1_INTEGER, Freer<ASN1_INTEGER_free>>;
using Time = std::unique_ptr<ASN1_TIME, Freer<ASN1_TIME_free>>;

constexpr std::chrono::hours authority_life{24 * 365 * 20};
constexpr std::size_t secret_bytes = 16;
constexpr std::size_t token_limit = 16 * 1024;
constexpr std::size_t issued_limit = 64 * 1024 * 1024;

std::string certificate_file(const std::string& directory) {
  return directory + "/authority.pem";
}
std::string key_file(const std::string& directory) {
  return directory + "/authority.key";
}
std::string issued_file(const std::string& directory) {
  return directory + "/issued";
}
std::string token_file(const std::string& directory, const std::string& secret) {
  // Named by its hash: how long it takes to find nothing says nothing about what there is.
  return directory + "/tokens/" + sha256(secret);
}

std::int64_t seconds_since_1970(Clock::time_point when) {
  return std::chrono::duration_cast<std::chrono::seconds>(when.time_since_epoch()).count();
}

/// Held while the list and the record of what was issued are changed: the daemon and commands both do it.
Result<Fd> lock(const std::string& directory) {
  const std::string path = directory + "/lock";
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd || ::flock(fd.get(), LOCK_EX) != 0) return fail_errno("lock {}", path);
  return fd;
}

bool is_hex(std::string_view text, std::size_t bytes) {
  return text.size() == 2 * bytes && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// The list stays good until there is a newer one: who can't reach the authority goes on with what it knows.
Result<Expelled> make_list(X509* authority, EVP_PKEY* key, std::uint64_t number, const std::set<std::string>& serials) {
  Expelled list(X509_CRL_new());
  X509_CRL* raw = list.get();
  const Time since(ASN1_TIME_set(nullptr, Clock::to_time_t(Clock::now() - skew)));
  if (!list || !since || X509_CRL_set_version(raw, X509_CRL_VERSION_2) != 1 ||
      X509_CRL_set_issuer_name(raw, X509_get_subject_name(authority)) != 1 ||
      X509_CRL_set1_lastUpdate(raw, since.get()) != 1)
    return openssl_failed("make the list of the expelled");
  for (const auto& serial : serials) {
    BIGNUM* digits = nullptr;
    BN_hex2bn(&digits, serial.c_str());
    const Number number_owner(digits);
    const Integer integer(BN_to_ASN1_INTEGER(digits, nullptr));
    std::unique_ptr<X509_REVOKED, Freer<X509_REVOKED_free>> entry(X509_REVOKED_new());
    if (!integer || !entry || X509_REVOKED_set_serialNumber(entry.get(), integer.get()) != 1 ||
        X509_REVOKED_set_revocationDate(entry.get(), since.get()) != 1 || X509_CRL_add0_revoked(raw, entry.get()) != 1)
      return openssl_failed("make the list of the expelled");
    entry.release();
  }
  const Integer counter(ASN1_INTEGER_new());
  if (!counter || ASN1_INTEGER_set_uint64(counter.get(), number) != 1 ||
      X509_CRL_add1_ext_i2d(raw, NID_crl_number, counter.get(), 0, 0) != 1 || X509_CRL_sort(raw) != 1 ||
      X509_CRL_sign(raw, key, EVP_sha256()) == 0)
    return openssl_failed("make the list of the expelled");
  return list;
}

struct Issued {
  std::string serial, name;
  std::int64_t end = 0;
};

Result<std::vector<Issued>> read_issued(const std::string& directory) {
  std::istringstream text(TRY(read_whole(issued_file(directory), issued_limit, true)));
  std::vector<Issued> all;
  for (std::string line; std::getline(text, line);) {
    std::istringstream words(line);
    Issued one;
    // Of a line that was cut off the certificate was never given away.
    if (words >> one.serial >> one.end >> one.name) all.push_back(std::move(one));
  }
  return all;
}

/// On the disk when this returns. What there is of it after an error is cut off.
Result<void> add_line(const std::string& path, std::string line) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC));
  const off_t size = fd ? ::lseek(fd.get(), 0, SEEK_END) : -1;
  if (size < 0) return fail_errno("write {}", path);
  // What a crash has left of a line ends here.
  char last = '\n';
  if (size > 0 && ::pread(fd.get(), &last, 1, size - 1) != 1) return fail_errno("read {}", path);
  if (last != '\n') line.insert(0, 1, '\n');
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t written = ::write(fd.get(), rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  if (rest.empty() && ::fsync(fd.get()) == 0) return {};
  auto failed = fail_errno("write {}", path);
  // If not even that is possible, the next line doesn't begin in its midst.
  [[maybe_unused]] const int cut = ::ftruncate(fd.get(), size);
  return failed;
}

}  // namespace

std::string expelled_beside(const std::string& authority_pem) {
  return std::filesystem::path(authority_pem).parent_path() / "expelled.pem";
}

Result<Token> Token::parse(const std::string& text) {
  const std::size_t last = text.rfind('/');
  const std::size_t middle = last == std::string::npos || last == 0 ? std::string::npos : text.rfind('/', last - 1);
  if (middle != std::string::npos) {
    Token token{text.substr(0, middle), text.substr(middle + 1, last - middle - 1), text.substr(last + 1)};
    if (split_address(token.address) && is_hex(token.fingerprint, 32) && is_hex(token.secret, secret_bytes))
      return token;
  }
  return std::unexpected(Error{ErrorKind::invalid, "this is not a token", 0, "godwit pki token makes one"});
}

Result<void> make_authority(const std::string& directory) {
  TRY(make_directory(directory, 0700));
  const Fd held = TRY(lock(directory));
  if (Authority::in(directory) || ::access(certificate_file(directory).c_str(), F_OK) == 0)
    return std::unexpected(Error{ErrorKind::refused, fmt::format("{} belongs to a cluster already", directory), 0,
                                 "another cluster needs another directory"});
  const Key key = TRY(make_key());
  const auto now = Clock::now();
  // Two authorities must not be taken for one: their names differ.
  const std::string name = "godwit cluster " + TRY(random_hex(8));
  const Certificate authority = TRY(begin_certificate(name, key.get(), {now - skew, now + authority_life}));
  X509* raw = authority.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(raw)) != 1) return openssl_failed("make the authority");
  TRY(extend(raw, raw, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  TRY(extend(raw, raw, NID_key_usage, "critical,keyCertSign,cRLSign"));
  TRY(extend(raw, raw, NID_subject_key_identifier, "hash"));
  if (X509_sign(raw, key.get(), EVP_sha256()) == 0) return openssl_failed("make the authority");
  const Expelled nobody = TRY(make_list(raw, key.get(), 1, {}));
  TRY(replace_file(issued_file(directory), "", 0600));
  TRY(replace_file(expelled_beside(certificate_file(directory)), to_pem(nobody.get()), 0644));
  TRY(replace_file(key_file(directory), to_pem(key.get()), 0600));
  return replace_file(certificate_file(directory), to_pem(raw), 0644);
}

bool Authority::in(const std::string& directory) {
  return ::access(key_file(directory).c_str(), F_OK) == 0;
}

Result<Authority> Authority::open(const std::string& directory) {
  if (!in(directory))
    return std::unexpected(Error{ErrorKind::refused, fmt::format("the cluster's authority is not in {}", directory), 0,
                                 "do it on the node where godwit pki init was run"});
  auto certificate = TRY(parse_certificate(TRY(read_whole(certificate_file(directory), pem_limit))));
  auto key = TRY(parse_key(TRY(read_whole(key_file(directory), pem_limit, true))));
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return fail(ErrorKind::invalid, "{}: authority.key is not that of authority.pem", directory);
  }
  return Authority(directory, std::move(certificate), std::move(key));
}

Result<Certificate> Authority::sign(X509_REQ* request, const Subject& subject, std::chrono::seconds life,
                                    const std::string& predecessor) {
  if (!valid_name(subject.name)) return fail(ErrorKind::invalid, "'{}' can't be a node's name", subject.name);
  if (subject.labels.size() > labels_limit)
    return fail(ErrorKind::invalid, "a node has {} labels at most", labels_limit);
  if (life <= std::chrono::seconds(0)) return fail(ErrorKind::invalid, "a life of {} s", life.count());
  // Held until it is written down: who is expelled meanwhile gets nothing that the list doesn't have.
  const Fd held = TRY(lock(directory_));
  return sign_held(request, subject, life, predecessor);
}

Result<Certificate> Authority::renew(X509_REQ* request, X509* shown, std::chrono::seconds life) {
  const Subject subject{name_of(shown), labels_of(shown)};
  const auto refuse = [&](std::string why) {
    return std::unexpected(Error{ErrorKind::refused, "node " + subject.name + std::move(why), 0,
                                 "with a new token, at any time: godwit join --again"});
  };
  if (!valid_name(subject.name)) return refuse(" can't be a node's name");
  const auto now = Clock::now();
  if (const auto first = thirds_over(shown, 1); now < first)
    return refuse(fmt::format(" has a certificate that is renewed from {} on", to_text(first)));
  const Fd held = TRY(lock(directory_));
  const std::string serial = serial_of(shown);
  std::size_t newer = 0;
  for (const auto& issued : TRY(read_issued(directory_))) {
    // In the order in which they were given.
    if (issued.serial == serial)
      newer = 0;
    else if (issued.name == subject.name && issued.end >= seconds_since_1970(now))
      newer++;
  }
  if (newer >= most_newer) return refuse(fmt::format(" was given {} newer certificates that are good", newer));
  return sign_held(request, subject, life, serial);
}

Result<Certificate> Authority::let_in(X509_REQ* request, const std::string& secret, std::chrono::seconds life,
                                      Subject& subject) {
  const Fd held = TRY(lock(directory_));
  subject = TRY(redeem(secret));
  return sign_held(request, subject, life, {});
}

Result<Certificate> Authority::sign_held(X509_REQ* request, const Subject& subject, std::chrono::seconds life,
                                         const std::string& predecessor) {
  if (!predecessor.empty()) {
    const std::string list = TRY(read_whole(expelled_beside(certificate_file(directory_)), list_limit));
    if (serials_of(TRY(parse_expelled(list)).get()).contains(predecessor))
      return fail(ErrorKind::refused, "node {} was expelled", subject.name);
  }
  const auto now = Clock::now();
  Certificate certificate =
      TRY(begin_certificate(subject.name, X509_REQ_get0_pubkey(request), {now - skew, now + life}));
  X509* raw = certificate.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(certificate_.get())) != 1)
    return openssl_failed("make a certificate");
  TRY(extend(raw, certificate_.get(), NID_basic_constraints, "critical,CA:FALSE"));
  TRY(extend(raw, certificate_.get(), NID_key_usage, "critical,digitalSignature"));
  TRY(extend(raw, certificate_.get(), NID_ext_key_usage, "serverAuth,clientAuth"));
  TRY(extend(raw, certificate_.get(), NID_authority_key_identifier, "keyid"));
  TRY(add_names(raw, subject.name, subject.labels));
  if (X509_sign(raw, key_.get(), EVP_sha256()) == 0) return openssl_failed("make a certificate");

  TRY(add_line(issued_file(directory_),
               fmt::format("{} {} {}\n", serial_of(raw), seconds_since_1970(now + life), subject.name)));
  return certificate;
}

Result<Token> Authority::make_token(const Subject& subject, const std::string& address, std::chrono::seconds life) {
  if (!valid_name(subject.name)) return fail(ErrorKind::invalid, "'{}' can't be a node's name", subject.name);
  if (subject.labels.size() > labels_limit)
    return fail(ErrorKind::invalid, "a node has {} labels at most", labels_limit);
  TRY(split_address(address));
  TRY(make_directory(directory_ + "/tokens", 0700));
  Token token{address, fingerprint(certificate_.get()), TRY(random_hex(secret_bytes))};
  std::string text = fmt::format("{} {}\n", seconds_since_1970(Clock::now() + life), subject.name);
  for (const auto& label : subject.labels) text += to_text(label) + "\n";
  TRY(replace_file(token_file(directory_, token.secret), text, 0600));
  return token;
}

Result<Subject> Authority::redeem(const std::string& secret) {
  const auto no = [] {
    return std::unexpected(Error{ErrorKind::refused, "the token is unknown, used or too old", 0,
                                 "make a new one where the authority is: godwit pki token"});
  };
  const std::string path = token_file(directory_, secret);
  const auto text = read_whole(path, token_limit, true);
  // Who takes the file away is the one that has used it.
  if (!text || ::unlink(path.c_str()) != 0) return no();
  std::istringstream words(*text);
  std::int64_t end = 0;
  Subject subject;
  if (!(words >> end >> subject.name) || seconds_since_1970(Clock::now()) > end) return no();
  for (std::string label; words >> label;) subject.labels.insert(TRY(parse_label(label)));
  return subject;
}

Result<Expelled> Authority::expel(const std::string& name) {
  const Fd held = TRY(lock(directory_));
  const std::string path = expelled_beside(certificate_file(directory_));
  const Expelled before = TRY(parse_expelled(TRY(read_whole(path, list_limit))));
  const std::set<std::string> already = serials_of(before.get());
  const std::int64_t now = seconds_since_1970(Clock::now());
  std::set<std::string> serials;
  bool found = false;
  for (const auto& issued : TRY(read_issued(directory_))) {
    found = found || issued.name == name;
    // What has run out is good for nothing by itself: the list doesn't grow for ever.
    if (issued.end + seconds_since_1970(Clock::time_point(skew)) < now) continue;
    if (issued.name == name || already.contains(issued.serial)) serials.insert(issued.serial);
  }
  if (!found) return fail(ErrorKind::not_found, "no node named '{}' was ever let in", name);
  Expelled list = TRY(make_list(certificate_.get(), key_.get(), number_of(before.get()) + 1, serials));
  const std::string pem = to_pem(list.get());
  if (pem.size() > list_limit)
    return std::unexpected(
        Error{ErrorKind::refused,
              fmt::format("the list of the expelled would have {} certificates, {} bytes: no node reads more than {}",
                          serials.size(), pem.size(), list_limit),
              0, "what runs out leaves it; before that only a new cluster keeps it out: godwit pki init"});
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory_ + "/tokens", error), last; !error && entry != last;
       entry.increment(error)) {
    std::istringstream words(read_whole(entry->path(), token_limit).value_or(""));
    std::string end, node;
    if (words >> end >> node && node == name) ::unlink(entry->path().c_str());
  }
  TRY(replace_file(path, pem, 0644));
  return list;
}

}  // namespace godwit::node::pki
