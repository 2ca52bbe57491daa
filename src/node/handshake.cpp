#include "node/handshake.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "base/names.hpp"
#include "image/codec.hpp"
#include "node/config.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t nonce_size = 32;
constexpr std::size_t mac_size = 32;
constexpr image::Limits limits{.bytes = handshake_frame_limit, .items = 16, .blob = handshake_frame_limit, .depth = 4};

struct Hello {
  std::string magic = "godwit";
  std::uint32_t version = protocol_version;
  std::string from, to;
  std::uint64_t list = 0;
  Bytes nonce;
  MSGPACK_DEFINE_MAP(magic, version, from, to, list, nonce)
};

struct Challenge {
  std::uint32_t version = protocol_version;
  std::uint64_t list = 0;
  Bytes nonce;
  std::string error;
  MSGPACK_DEFINE_MAP(version, list, nonce, error)
};

struct Proof {
  std::string service;
  Bytes mac;
  MSGPACK_DEFINE_MAP(service, mac)
};

struct Answer {
  Bytes mac;
  std::string error;
  MSGPACK_DEFINE_MAP(mac, error)
};

/// What a mac speaks for. Packed as MessagePack every part has its length, so no two transcripts are the same bytes.
struct Transcript {
  std::string role;
  std::uint32_t version = protocol_version;
  std::string from, to;
  Bytes initiator_nonce, responder_nonce;
  std::string service;
  std::string error;
  MSGPACK_DEFINE_MAP(role, version, from, to, initiator_nonce, responder_nonce, service, error)

  [[nodiscard]] Result<Bytes> mac(const std::string& key, const std::string& as, const std::string& verdict = {}) {
    role = as;
    error = verdict;
    const Bytes text = image::pack(*this);
    Bytes out(mac_size);
    unsigned size = 0;
    if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), text.data(), text.size(), out.data(), &size) ==
            nullptr ||
        size != mac_size)
      return fail(ErrorKind::failed, "HMAC failed");
    return out;
  }
};

bool same(const Bytes& one, const Bytes& other) {
  return one.size() == other.size() && CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

Result<Bytes> nonce() {
  Bytes bytes(nonce_size);
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1)
    return fail(ErrorKind::failed, "no random numbers");
  return bytes;
}

template <typename T>
Result<T> receive(Stream& stream, Deadline deadline) {
  const Bytes frame = TRY(read_frame(stream, handshake_frame_limit, deadline));
  return image::unpack<T>(frame, limits);
}

template <typename T>
Result<void> send(Stream& stream, const T& value, Deadline deadline) {
  return write_frame(stream, image::pack(value), deadline);
}

std::unexpected<Error> refused_by(const std::string& peer, const std::string& why) {
  return fail(ErrorKind::refused, "node {} refused the connection: {}", peer,
              printable(why) ? why : "in words that can't be shown");
}

}  // namespace

Result<std::uint64_t> initiate(Stream& stream, const Identity& identity, const std::string& peer,
                               const std::string& service, Deadline deadline) {
  if (identity.key.empty()) return fail(ErrorKind::refused, "this node has no key");
  Hello hello{.from = identity.node, .to = peer, .list = identity.list, .nonce = TRY(nonce())};
  TRY(send(stream, hello, deadline));
  const Challenge challenge = TRY(receive<Challenge>(stream, deadline));
  if (!challenge.error.empty()) return refused_by(peer, challenge.error);
  if (challenge.version != protocol_version)
    return fail(ErrorKind::refused, "node {} speaks version {}, we speak {}", peer, challenge.version,
                protocol_version);
  if (challenge.nonce.size() != nonce_size) return fail(ErrorKind::invalid, "node {}: malformed challenge", peer);
  Transcript transcript{.from = hello.from,
                        .to = peer,
                        .initiator_nonce = hello.nonce,
                        .responder_nonce = challenge.nonce,
                        .service = service};
  const Bytes proof = TRY(transcript.mac(identity.key, "initiator"));
  TRY(send(stream, Proof{service, proof}, deadline));
  const Answer answer = TRY(receive<Answer>(stream, deadline));
  const Bytes expected = TRY(transcript.mac(identity.key, "responder", answer.error));
  // An unproved refusal is passed on as it is: who has another key can't prove anything to us.
  if (!answer.error.empty()) return refused_by(peer, answer.error);
  if (!same(answer.mac, expected)) return fail(ErrorKind::refused, "node {} does not have our key", peer);
  return challenge.list;
}

Result<Caller> respond(Stream& stream, const Identity& identity,
                       const std::function<std::string(const std::string&)>& objection,
                       const std::function<bool(const std::string&)>& offers, Deadline deadline) {
  if (identity.key.empty()) return fail(ErrorKind::refused, "this node has no key");
  const Hello hello = TRY(receive<Hello>(stream, deadline));
  if (hello.magic != "godwit" || hello.nonce.size() != nonce_size)
    return fail(ErrorKind::invalid, "a stranger does not speak our protocol");
  const auto turn_away = [&](std::string why) -> std::unexpected<Error> {
    (void)send(stream, Challenge{.error = why}, deadline);
    // The name is only a claim yet: it goes into the log if it is at least a name.
    return fail(ErrorKind::refused, "{} was turned away: {}", valid_name(hello.from) ? hello.from : "a stranger", why);
  };
  if (hello.version != protocol_version)
    return turn_away(fmt::format("it speaks version {}, we speak {}", hello.version, protocol_version));
  if (hello.to != identity.node) return turn_away("this is another node than it expects; compare the peers' addresses");
  if (const std::string why = objection(hello.from); !why.empty()) return turn_away(why);

  Transcript transcript{
      .from = hello.from, .to = identity.node, .initiator_nonce = hello.nonce, .responder_nonce = TRY(nonce())};
  TRY(send(stream, Challenge{.list = identity.list, .nonce = transcript.responder_nonce}, deadline));
  const Proof proof = TRY(receive<Proof>(stream, deadline));
  transcript.service = proof.service;
  if (!same(proof.mac, TRY(transcript.mac(identity.key, "initiator")))) {
    (void)send(stream, Answer{{}, "wrong key"}, deadline);
    return fail(ErrorKind::refused, "{} was turned away: wrong key", hello.from);
  }
  // From here on the caller is who it says it is.
  const std::string verdict = offers(proof.service) ? "" : fmt::format("no service '{}' here", proof.service);
  TRY(send(stream, Answer{TRY(transcript.mac(identity.key, "responder", verdict)), verdict}, deadline));
  if (!verdict.empty()) return fail(ErrorKind::refused, "{} asked for an unknown service", hello.from);
  return Caller{hello.from, proof.service, hello.list};
}

}  // namespace godwit::node
