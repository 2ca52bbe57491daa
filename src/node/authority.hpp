#pragma once

#include "node/certificate.hpp"

/// The cluster's authority: who has its key says who is a node. Files in one directory:
///
///   authority.pem   its certificate: all that a node must know of it
///   authority.key   (0600) whoever has it can make nodes
///   expelled.pem    what is no longer trusted
///   issued          "SERIAL END NODE" for each certificate, END in seconds since 1970
///   tokens/         a file for each token that wasn't used yet, named by the hash of its secret
///
/// A node has authority.pem and expelled.pem too, and `node.pem` and `node.key` of its own (0600).
namespace godwit::node::pki {

std::string expelled_beside(const std::string& authority_pem);

/// Good for so long when nothing else is said.
inline constexpr std::chrono::seconds default_life = std::chrono::hours(24 * 30);

/// So many newer certificates may be good beside one that is renewed: answers may be lost.
inline constexpr std::size_t most_newer = 16;

/// What the authority says of a node.
struct Subject {
  std::string name;
  Labels labels;
};

struct Token {
  std::string address;      ///< of the node that answers
  std::string fingerprint;  ///< of the authority: the new node trusts nobody else from the first byte on
  std::string secret;
  [[nodiscard]] std::string text() const { return address + "/" + fingerprint + "/" + secret; }
  /// `invalid` for what isn't one.
  static Result<Token> parse(const std::string& text);
};

/// Makes a new authority in a directory. `refused` when there is one already.
Result<void> make_authority(const std::string& directory);

class Authority {
 public:
  /// True when the key is there.
  static bool in(const std::string& directory);
  /// `refused` when it isn't there.
  static Result<Authority> open(const std::string& directory);

  /// A certificate for the key that has signed the request, for exactly that node; what else the request says doesn't
  /// count. Written down before it is given away: what isn't can't be expelled. `predecessor`: the serial number of the
  /// certificate that it replaces; `refused` when that one was expelled.
  Result<Certificate> sign(X509_REQ*, const Subject&, std::chrono::seconds life, const std::string& predecessor = {});
  /// The next certificate for who shows this one: the same name and labels. `refused` before a third of its life is
  /// over, and when too many newer ones of that name are good: each of them has to be expelled one day.
  Result<Certificate> renew(X509_REQ*, X509* shown, std::chrono::seconds life);
  /// Lets one node in, once, for as long as it is good.
  Result<Token> make_token(const Subject&, const std::string& address, std::chrono::seconds life);
  /// A certificate for who shows a token, which is used up by it. `refused` when there is none, or no longer; nobody is
  /// expelled in between.
  Result<Certificate> let_in(X509_REQ*, const std::string& secret, std::chrono::seconds life, Subject&);
  /// Uses a token up. `refused` when there is none, or no longer.
  Result<Subject> redeem(const std::string& secret);
  /// Trusts none of the node's certificates any more, nor its tokens: the next list of the expelled, written down.
  /// `not_found` when it was never given one.
  Result<Expelled> expel(const std::string& name);

  [[nodiscard]] X509* certificate() const { return certificate_.get(); }

 private:
  Authority(std::string directory, Certificate certificate, Key key)
      : directory_(std::move(directory)), certificate_(std::move(certificate)), key_(std::move(key)) {}

  /// With the lock of the directory.
  Result<Certificate> sign_held(X509_REQ*, const Subject&, std::chrono::seconds life, const std::string& predecessor);

  std::string directory_;
  Certificate certificate_;
  Key key_;
};

}  // namespace godwit::node::pki
