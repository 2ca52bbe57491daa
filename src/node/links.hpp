#pragma once

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
}  // namespace service

/// Connections to the peers in the config. Thread-safe; every call opens one.
class Links {
 public:
  explicit Links(const Config& config) : config_(config), identity_{config.node, config.key} {}

  /// An authenticated connection for `service`, TCP_NODELAY. `not_found` when there is no such peer in the
  /// config, `unreachable` when it doesn't answer, `refused` when one side doesn't trust the other.
  Result<Stream> connect(const std::string& peer, std::string_view service, std::chrono::milliseconds limit) const;

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] const Identity& identity() const { return identity_; }

 private:
  const Config& config_;
  const Identity identity_;
};

}  // namespace godwit::node
