#include "node/links.hpp"

#include <array>

#include "base/log.hpp"
#include "node/trust.hpp"

namespace godwit::node {
namespace {

/// The first byte of TLS is 22 (RFC 8446, 5.1); ours is the first of the length of a short frame.
Result<bool> begins_as_tls(Stream& stream, Deadline deadline) {
  TRY(wait_readable(stream, deadline));
  std::uint8_t first = 0;
  if (stream.receive(&first, 1, true) != 1) return fail(ErrorKind::unreachable, "the caller hung up");
  return first == 22;
}

}  // namespace

Result<Identity> Links::identity(const Stream& stream) const {
  if (trust_ == nullptr) return Identity{config_.node, config_.key};
  return Identity{config_.node, TRY(pki::session_key(stream)), trust_->list_number()};
}

Result<Stream> Links::connect(const std::string& peer, std::string_view service,
                              std::chrono::milliseconds limit) const {
  const Peer* known = config_.peer(peer);
  if (known == nullptr) {
    std::string names = config_.node;
    for (const Peer& other : config_.peers) names += ", " + other.name;
    return std::unexpected(
        Error{ErrorKind::not_found, fmt::format("no node named '{}'", peer), 0, "known here: " + names});
  }
  const Deadline deadline = in(limit);
  const auto connected = [&]() -> Result<Stream> {
    const auto [host, port] = TRY(split_address(known->address));
    Fd fd = TRY(connect_tcp(host, port, deadline));
    Stream stream = trust_ != nullptr ? TRY(trust_->connect(std::move(fd), peer, deadline)) : Stream(std::move(fd));
    const std::uint64_t list = TRY(initiate(stream, TRY(identity(stream)), peer, std::string(service), deadline));
    if (trust_ != nullptr && on_newer_list && list > trust_->list_number()) on_newer_list(peer);
    return stream;
  };
  auto stream = connected();
  if (stream) return stream;
  Error error = std::move(stream.error());
  if (error.kind == ErrorKind::timeout) error.kind = ErrorKind::unreachable;
  return std::unexpected(std::move(error).within("node " + peer));
}

Result<Caller> Links::accept(Stream& stream, const std::function<bool(const std::string&, bool)>& offers) const {
  const Deadline deadline = in(handshake_time);
  const bool tls = TRY(begins_as_tls(stream, deadline));
  std::string objection, name;
  if (trust_ != nullptr && tls) {
    auto guest = TRY(trust_->accept(stream.take_socket(), deadline));
    stream = std::move(guest.stream);
    name = guest.name;
    objection = guest.objection;
  } else if (trust_ != nullptr) {
    objection = "TLS is spoken here, and the caller has plain = true in its config";
  } else if (tls) {
    // Taken first: closing over unread bytes would throw away what we say, which ends the caller's handshake at once.
    std::array<char, 4096> hello;
    (void)stream.receive(hello.data(), hello.size());
    (void)write_all(stream, "plain", deadline);
    return fail(ErrorKind::refused, "a caller speaks TLS, and this node has plain = true in its config");
  }
  const bool member = trust_ == nullptr || !name.empty();
  const auto object = [&](const std::string& from) -> std::string {
    if (!objection.empty()) return objection;
    if (!member) return {};
    if (trust_ != nullptr && from != name)
      return fmt::format("the caller says that it is '{}', and its certificate that it is '{}'", from, name);
    return config_.peer(from) != nullptr ? "" : "not among the peers in the config here";
  };
  // Who speaks plain where TLS is spoken is only told so: it has no key that we have.
  const Identity self = trust_ != nullptr && !tls ? Identity{config_.node, "-"} : TRY(identity(stream));
  Caller caller = TRY(respond(
      stream, self, object, [&](const std::string& service) { return offers(service, member); }, deadline));
  if (member && trust_ != nullptr && on_newer_list && caller.list > trust_->list_number()) on_newer_list(caller.peer);
  return caller;
}

std::optional<std::map<std::string, std::string>> Links::labels(const Stream& stream) {
  X509* certificate = pki::shown_certificate(stream);
  if (certificate == nullptr) return std::nullopt;
  return pki::labels_of(certificate);
}

}  // namespace godwit::node
