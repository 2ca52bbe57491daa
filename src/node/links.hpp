#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "node/config.hpp"
#include "node/handshake.hpp"

namespace godwit::node {

/// Names of the services that a connection between daemons can be for.
namespace service {
inline constexpr std::string_view api = "api";               ///< HTTP, as on the Unix socket
inline constexpr std::string_view store = "store";           ///< node/store_link
inline constexpr std::string_view starter = "starter";       ///< node/starter: who takes a pod
inline constexpr std::string_view migration = "migration:";  ///< followed by the migration's id
inline constexpr std::string_view pages = "pages:";          ///< the same: what a pod has left, node/remainders
inline constexpr std::string_view owed = "owed:";            ///< the same: whether it still needs that
// node/membership:
inline constexpr std::string_view join = "join";          ///< a certificate for a token; the only one for strangers
inline constexpr std::string_view renew = "renew";        ///< a new certificate for an old one
inline constexpr std::string_view expelled = "expelled";  ///< the newer list of the expelled
}  // namespace service

class Trust;

/// Connections to the peers in the config. Thread-safe; every call opens one.
class Links {
 public:
  /// Without `trust`: plain TCP and the config's key.
  explicit Links(const Config& config, const Trust* trust = nullptr) : config_(config), trust_(trust) {}

  /// An authenticated connection for `service`, TCP_NODELAY. `not_found` when there is no such peer in the
  /// config, `unreachable` when it doesn't answer, `refused` when one side doesn't trust the other.
  Result<Stream> connect(const std::string& peer, std::string_view service, std::chrono::milliseconds limit) const;

  /// The other half, for a connection that was just accepted. `offers(service, member)`: whether we have that service;
  /// who is no `member` may only join. It is asked before the caller learns of it.
  Result<Caller> accept(Stream&, const std::function<bool(const std::string& service, bool member)>& offers) const;

  /// The peer's labels by its certificate; nothing in plain, where a peer's own word has to do.
  static std::optional<std::map<std::string, std::string>> labels(const Stream&);

  /// Called with a peer's name when it has a newer list of the expelled than we. Set before the first connection.
  std::function<void(const std::string&)> on_newer_list;

  [[nodiscard]] const Config& config() const { return config_; }

 private:
  [[nodiscard]] Result<Identity> identity(const Stream&) const;

  const Config& config_;
  const Trust* const trust_;
};

}  // namespace godwit::node
