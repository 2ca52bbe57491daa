// What a stranger says before it has proved who it is, and what one says that we have called.
#include "node/handshake.hpp"

#include <netinet/in.h>

#include "fuzz.hpp"

namespace {

using namespace godwit;

const node::Identity identity{"a", "a key that nobody else has"};

void one(BytesView input) {
  if (input.empty()) return;
  fuzz::Wire wire(input.subspan(1));
  const auto deadline = node::in(std::chrono::seconds(1));
  if (input[0] % 2 == 0) {
    const auto caller = node::respond(
        wire.stream, identity, [](const std::string& name) { return name == "b" ? std::string() : "not one of us"; },
        [](const std::string&) { return true; }, deadline);
    fuzz::require(!caller, "nobody gets in without the key");
  } else {
    fuzz::require(!node::initiate(wire.stream, identity, "b", "starter", deadline), "nobody is believed without it");
  }
}

/// The messages of the handshake are its own: here they are made of a map with the same names.
struct Hello {
  std::string magic = "godwit";
  std::uint32_t version = node::protocol_version;
  std::string from = "b", to = "a";
  Bytes nonce = Bytes(32, 7);
  MSGPACK_DEFINE_MAP(magic, version, from, to, nonce)
};
struct Proof {
  std::string service = "starter";
  Bytes mac = Bytes(32, 7);
  MSGPACK_DEFINE_MAP(service, mac)
};
struct Challenge {
  std::uint32_t version = node::protocol_version;
  Bytes nonce = Bytes(32, 7);
  std::string error;
  MSGPACK_DEFINE_MAP(version, nonce, error)
};
struct Answer {
  Bytes mac = Bytes(32, 7);
  std::string error;
  MSGPACK_DEFINE_MAP(mac, error)
};

void add(Bytes& to, BytesView payload) {
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(payload.size()));
  fuzz::append(to, {reinterpret_cast<const std::uint8_t*>(&length), sizeof length});
  fuzz::append(to, payload);
}

std::vector<Bytes> seeds() {
  Bytes responder{0}, initiator{1}, refused{1};
  add(responder, image::pack(Hello{}));
  add(responder, image::pack(Proof{}));
  add(initiator, image::pack(Challenge{}));
  add(initiator, image::pack(Answer{}));
  add(refused, image::pack(Challenge{.nonce = {}, .error = "not among the peers"}));
  return {responder, initiator, refused};
}

}  // namespace

FUZZ_TARGET(one, seeds)
