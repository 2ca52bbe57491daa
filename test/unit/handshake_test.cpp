#include "node/handshake.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "image/codec.hpp"

namespace godwit::node {
namespace {

using namespace std::chrono_literals;

const Identity a{"a", "the key of the cluster"};
const Identity b{"b", "the key of the cluster"};

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    left = Stream(Fd(fds[0]));
    right = Stream(Fd(fds[1]));
  }
  Stream left, right;
};

struct Outcome {
  Result<std::uint64_t> initiator = fail(ErrorKind::failed, "did not run");
  Result<Caller> responder = fail(ErrorKind::failed, "did not run");
};

Outcome shake(const Identity& from, const std::string& to, const std::string& service, const Identity& at) {
  Pair pair;
  Outcome outcome;
  std::thread responder([&] {
    outcome.responder = respond(
        pair.right, at,
        [](const std::string& name) { return name == "a" ? "" : "not among the peers in the config here"; },
        [](const std::string& name) { return name == "store"; }, in(5s));
    pair.right.reset();
  });
  outcome.initiator = initiate(pair.left, from, to, service, in(5s));
  pair.left.reset();
  responder.join();
  return outcome;
}

/// What the responder says to raw bytes, after which the caller hangs up.
Result<Caller> respond_to(const Bytes& bytes) {
  Pair pair;
  EXPECT_TRUE(write_all(pair.left, bytes.data(), bytes.size(), in(5s)));
  shutdown(pair.left.fd(), SHUT_WR);
  return respond(
      pair.right, b, [](const std::string&) { return ""; }, [](const std::string&) { return true; }, in(5s));
}

/// What an impostor would say.
struct FakeChallenge {
  std::uint32_t version = protocol_version;
  Bytes nonce = Bytes(32);
  MSGPACK_DEFINE_MAP(version, nonce)
};
struct FakeAnswer {
  Bytes mac = Bytes(32);
  MSGPACK_DEFINE_MAP(mac)
};

Bytes frame(const Bytes& payload, std::uint32_t length) {
  Bytes all{static_cast<std::uint8_t>(length >> 24), static_cast<std::uint8_t>(length >> 16),
            static_cast<std::uint8_t>(length >> 8), static_cast<std::uint8_t>(length)};
  all.insert(all.end(), payload.begin(), payload.end());
  return all;
}

TEST(Handshake, SameKeyAgrees) {
  const Outcome outcome = shake(a, "b", "store", b);
  ASSERT_TRUE(outcome.initiator) << outcome.initiator.error().message();
  ASSERT_TRUE(outcome.responder) << outcome.responder.error().message();
  EXPECT_EQ(outcome.responder->peer, "a");
  EXPECT_EQ(outcome.responder->service, "store");
}

TEST(Handshake, WrongKeyIsTurnedAwayByBothSides) {
  const Outcome outcome = shake({"a", "another key altogether"}, "b", "store", b);
  ASSERT_FALSE(outcome.initiator);
  EXPECT_EQ(outcome.initiator.error().kind, ErrorKind::refused);
  EXPECT_NE(outcome.initiator.error().message().find("wrong key"), std::string::npos);
  ASSERT_FALSE(outcome.responder);
  EXPECT_EQ(outcome.responder.error().kind, ErrorKind::refused);
}

TEST(Handshake, ResponderMustProveItselfToo) {
  // A responder that says yes to everybody without having the key.
  Pair pair;
  std::thread impostor([&] {
    ASSERT_TRUE(read_frame(pair.right, 4096, in(5s)));
    ASSERT_TRUE(write_frame(pair.right, image::pack(FakeChallenge{}), in(5s)));
    ASSERT_TRUE(read_frame(pair.right, 4096, in(5s)));
    ASSERT_TRUE(write_frame(pair.right, image::pack(FakeAnswer{}), in(5s)));
  });
  const auto result = initiate(pair.left, a, "b", "store", in(5s));
  impostor.join();
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message().find("does not have our key"), std::string::npos);
}

TEST(Handshake, UnknownPeerWrongNodeUnknownService) {
  const Outcome unknown = shake({"mallory", a.key}, "b", "store", b);
  ASSERT_FALSE(unknown.initiator);
  EXPECT_NE(unknown.initiator.error().message().find("not among the peers"), std::string::npos);
  EXPECT_FALSE(unknown.responder);
  const Outcome other = shake(a, "c", "store", b);
  ASSERT_FALSE(other.initiator);
  EXPECT_NE(other.initiator.error().message().find("another node"), std::string::npos);
  const Outcome service = shake(a, "b", "shell", b);
  ASSERT_FALSE(service.initiator);
  EXPECT_NE(service.initiator.error().message().find("no service 'shell'"), std::string::npos);
  EXPECT_FALSE(service.responder);
}

TEST(Handshake, ProofOfOneConnectionIsWorthNothingOnAnother) {
  // Hello and proof recorded on one connection, replayed on a second one.
  Bytes hello, proof;
  {
    Pair client, server;
    std::thread initiator([&] { (void)initiate(client.left, a, "b", "store", in(5s)); });
    std::thread responder([&] {
      (void)respond(
          server.right, b, [](const std::string&) { return ""; }, [](const std::string&) { return true; }, in(5s));
    });
    hello = *read_frame(client.right, 4096, in(5s));
    ASSERT_TRUE(write_frame(server.left, hello, in(5s)));
    ASSERT_TRUE(write_frame(client.right, *read_frame(server.left, 4096, in(5s)), in(5s)));
    proof = *read_frame(client.right, 4096, in(5s));
    ASSERT_TRUE(write_frame(server.left, proof, in(5s)));
    ASSERT_TRUE(write_frame(client.right, *read_frame(server.left, 4096, in(5s)), in(5s)));
    initiator.join();
    responder.join();
  }
  Bytes replay = frame(hello, static_cast<std::uint32_t>(hello.size()));
  const Bytes second = frame(proof, static_cast<std::uint32_t>(proof.size()));
  replay.insert(replay.end(), second.begin(), second.end());
  const auto result = respond_to(replay);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message().find("wrong key"), std::string::npos);
}

TEST(Handshake, HostileFramesAreErrors) {
  EXPECT_EQ(respond_to({}).error().kind, ErrorKind::unreachable);
  EXPECT_EQ(respond_to({0, 0}).error().kind, ErrorKind::unreachable);
  EXPECT_EQ(respond_to(frame({1, 2, 3}, 100)).error().kind, ErrorKind::unreachable);
  EXPECT_EQ(respond_to(frame({}, 0xffffffff)).error().kind, ErrorKind::invalid);
  EXPECT_EQ(respond_to(frame({}, handshake_frame_limit + 1)).error().kind, ErrorKind::invalid);
  EXPECT_EQ(respond_to(frame({}, 0)).error().kind, ErrorKind::invalid);
  EXPECT_EQ(respond_to(frame({0xc0}, 1)).error().kind, ErrorKind::invalid);
  // A map that claims 2^32-1 entries, an array nested a thousand times, and a string longer than its frame.
  EXPECT_EQ(respond_to(frame({0xdf, 0xff, 0xff, 0xff, 0xff}, 5)).error().kind, ErrorKind::invalid);
  EXPECT_EQ(respond_to(frame(Bytes(1000, 0x91), 1000)).error().kind, ErrorKind::invalid);
  EXPECT_EQ(respond_to(frame({0xdb, 0xff, 0xff, 0xff, 0xff, 'a'}, 6)).error().kind, ErrorKind::invalid);
  const std::string http = "GET / HTTP/1.1\r\n\r\n";
  EXPECT_EQ(respond_to(Bytes(http.begin(), http.end())).error().kind, ErrorKind::invalid);
}

TEST(Handshake, SilentPeerEndsInTime) {
  Pair pair;
  const auto begin = std::chrono::steady_clock::now();
  const auto result = respond(
      pair.right, b, [](const std::string&) { return ""; }, [](const std::string&) { return true; }, in(50ms));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::timeout);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
  const auto initiator = initiate(pair.left, a, "b", "store", in(50ms));
  EXPECT_EQ(initiator.error().kind, ErrorKind::timeout);
}

TEST(Handshake, DrippingPeerEndsInTimeToo) {
  Pair pair;
  std::atomic<bool> stop = false;
  std::thread drip([&] {
    const char zero = 0;
    // The length says 0x3f0 bytes; then one byte every few milliseconds.
    const Bytes head{0, 0, 3, 0xf0};
    (void)write_all(pair.left, head.data(), head.size(), in(5s));
    while (!stop && write_all(pair.left, &zero, 1, in(1s))) std::this_thread::sleep_for(10ms);
  });
  const auto result = respond(
      pair.right, b, [](const std::string&) { return ""; }, [](const std::string&) { return true; }, in(100ms));
  stop = true;
  drip.join();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::timeout);
}

}  // namespace
}  // namespace godwit::node
