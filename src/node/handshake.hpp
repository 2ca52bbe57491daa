#pragma once

#include <functional>
#include <string>

#include "node/io.hpp"

/// How two daemons find out that both hold the same key, before anything else is said. With TLS the key is the
/// session's own (pki::session_key), so that what is agreed here can't be carried to another session; without, it is
/// the cluster's.
///
///   initiator                                  responder
///     Hello {version, from, to, list, nonce}  ->
///                                        <-    Challenge {version, list, nonce} | Challenge {error}
///     Proof {service, mac}               ->
///                                        <-    Answer {mac, error}
///
/// mac = HMAC-SHA-256(key, role, version, from, to, both nonces, service). The initiator proves first, so that whoever
/// knocks at the open port learns nothing that was made with the key. From the answer on the connection belongs to the
/// service. `list` is the number of the list of the expelled that each side has: the newer one is asked for.
namespace godwit::node {

inline constexpr std::uint32_t protocol_version = 2;
inline constexpr std::size_t handshake_frame_limit = 1024;
inline constexpr std::chrono::milliseconds handshake_time{5000};

/// Who we are to peers.
struct Identity {
  std::string node;
  std::string key;
  std::uint64_t list = 0;
};

/// Proves ourselves to `peer`, the other way round too, and asks for `service`.
/// `refused` when one side doesn't trust the other or has no such service, with the reason. Returns the peer's `list`.
Result<std::uint64_t> initiate(Stream& stream, const Identity&, const std::string& peer, const std::string& service,
                               Deadline);

struct Caller {
  std::string peer;
  std::string service;
  std::uint64_t list = 0;
};

/// The other half. `objection` says why whoever calls itself so isn't welcome, or nothing; `offers` whether we have
/// that service: it is asked once the peer has proved itself, and before the peer learns of it.
Result<Caller> respond(Stream& stream, const Identity&, const std::function<std::string(const std::string&)>& objection,
                       const std::function<bool(const std::string&)>& offers, Deadline);

}  // namespace godwit::node
