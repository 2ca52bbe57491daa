#pragma once

#include "control/needs.hpp"
#include "node/config.hpp"
#include "pod/user.hpp"

/// What users and other nodes may do here, as the node's owner has said in the config.
namespace godwit::node {

/// A set of users: "alice", "1000", "1000-1999", "@GROUP" (whoever is in it), "*" (everyone).
class Users {
 public:
  /// `invalid` for what is malformed, or has no number on this machine.
  static Result<Users> from(const std::vector<std::string>& words);
  /// Who the kernel says that it is.
  [[nodiscard]] bool contains(const pod::User&) const;
  /// Who another node says that it is: by the number, and by the groups that this machine's own lists give its account.
  /// Root is in none of them.
  [[nodiscard]] bool covers(std::uint32_t uid) const;

 private:
  struct Range {
    std::uint32_t first = 0, last = 0;
  };
  static bool within(const std::vector<Range>&, std::uint32_t id);
  std::vector<Range> users_, groups_;
};

/// Another node, and what the authority says of it. Its certificate's labels `users` and `capabilities`
/// ("4000-4999,alice", "CHOWN,KILL") bound what its pods may be on every node; the config bounds it for this one. Both
/// hold.
struct Sender {
  std::string name;
  std::map<std::string, std::string> labels;
};

class Rules {
 public:
  /// `invalid` names the key.
  static Result<Rules> from(const Config&);

  /// Whether `caller` may have a pod here that runs as `wanted`, with these capabilities at most. `refused` says why
  /// not. Root may all.
  [[nodiscard]] Result<void> may_run(const pod::User& caller, const pod::User& wanted,
                                     std::uint64_t capabilities) const;
  /// Whether a pod of `owner` may leave this node for `peer`.
  [[nodiscard]] Result<void> may_send(const std::string& peer) const;
  [[nodiscard]] Result<void> may_move(const pod::User& caller) const;
  /// Whether what `peer` passes on may be asked for in the name of whoever has this uid.
  [[nodiscard]] Result<void> may_speak(const Sender& peer, std::uint32_t uid) const;
  /// The same for who asks with these groups: others than this machine would give them are root's to give.
  [[nodiscard]] Result<void> may_speak(const Sender& peer, const pod::User& user) const;
  /// Reasons against taking in a pod of `peer`.
  [[nodiscard]] std::vector<control::Refusal> against(const Sender& peer, const control::Needs&) const;

 private:
  struct Trust {
    bool send = true, receive = true;
    Users users;
    std::uint64_t capabilities = ~0ULL;
  };
  [[nodiscard]] const Trust* trust(const std::string& peer) const;

  std::string node_;
  Users run_, move_;
  std::map<std::string, Trust> peers_;
};

}  // namespace godwit::node
