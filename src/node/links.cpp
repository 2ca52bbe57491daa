#include "node/links.hpp"

namespace godwit::node {

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
  const auto [host, port] = TRY(split_address(known->address));
  Result<Fd> fd = connect_tcp(host, port, deadline);
  if (!fd) return std::unexpected(std::move(fd.error()).within("node " + peer));
  Stream stream(std::move(*fd));
  const Result<void> shaken = initiate(stream, identity_, peer, std::string(service), deadline);
  if (shaken) return stream;
  Error error = shaken.error();
  if (error.kind == ErrorKind::timeout) error.kind = ErrorKind::unreachable;
  return std::unexpected(std::move(error).within("node " + peer));
}

}  // namespace godwit::node
