#pragma once

#include <functional>
#include <string>

#include "node/io.hpp"

/// How two daemons find out that both hold the cluster's key, before anything else is said:
///
///   initiator                                  responder
///     Hello {version, from, to, nonce}   ->
///                                        <-    Challenge {version, nonce} | Answer {error}
///     Proof {service, mac}               ->
///                                        <-    Answer {mac, error}
///
/// mac = HMAC-SHA-256(key, role, version, from, to, both nonces, service). The initiator proves first, so that whoever
/// knocks at the open port learns nothing that was made with the key. From the answer on the connection belongs to the
/// service. The next issue puts TLS below it; until then what follows is authenticated at its beginning only.
namespace godwit::node {

inline constexpr std::uint32_t protocol_version = 1;
inline constexpr std::size_t handshake_frame_limit = 1024;
inline constexpr std::chrono::milliseconds handshake_time{5000};

/// Who we are to peers.
struct Identity {
  std::string node;
  std::string key;
};

/// Proves ourselves to `peer`, the other way round too, and asks for `service`.
/// `refused` when one side doesn't trust the other or has no such service, with the reason.
Result<void> initiate(Stream& stream, const Identity&, const std::string& peer, const std::string& service, Deadline);

struct Caller {
  std::string peer;
  std::string service;
};

/// The other half. `known` says whether a name is that of a listed peer; `offers` whether we have that service: it is
/// asked once the peer has proved itself, and before the peer learns of it.
Result<Caller> respond(Stream& stream, const Identity&, const std::function<bool(const std::string&)>& known,
                       const std::function<bool(const std::string&)>& offers, Deadline);

}  // namespace godwit::node
