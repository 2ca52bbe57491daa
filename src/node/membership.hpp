#pragma once

#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "node/links.hpp"
#include "node/trust.hpp"

namespace godwit::node {

/// What nodes do for each other's certificates: the authority's node lets new ones in and renews the others', and all
/// of them pass on who was expelled. Works by itself on a thread.
class Membership {
 public:
  Membership(Links&, Trust&);
  ~Membership();

  /// Whether the service is one of these, and this node has it for such a caller.
  [[nodiscard]] bool offers(const std::string& service, bool member) const;
  /// Answers one request.
  void serve(Stream&, const Caller&);

  /// Takes what was written into the files meanwhile.
  Result<void> reload() { return trust_.reload(); }
  struct Told {
    std::string node;
    Result<void> outcome;
  };
  /// Tells all peers of the list that we have, and takes theirs where it is newer.
  std::vector<Told> spread();
  /// A new certificate, from the authority here or from the node that has it. `unreachable` when none answers.
  Result<void> renew();

 private:
  void work();
  Result<void> exchange_lists(const std::string& peer);
  Result<pki::Certificate> ask_for_renewal(const std::string& request);
  [[nodiscard]] std::string directory() const;

  Links& links_;
  Trust& trust_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::set<std::string> newer_at_;  ///< peers that have a newer list
  bool ending_ = false;
  std::thread thread_;
};

/// What a new node gets for its token.
struct Joined {
  std::string certificate, authority, expelled;  ///< PEM
  std::string node;                              ///< the new node's name
  std::string by, by_address;                    ///< who has let it in
};
/// Shows a token at the node that it names, without a certificate. `refused` when it isn't taken.
Result<Joined> join(const std::string& token, const std::string& request, Deadline);

}  // namespace godwit::node
