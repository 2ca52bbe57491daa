#include "node/links.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <filesystem>
#include <future>

#include "base/interruptible.hpp"
#include "node/journal.hpp"
#include "node/server.hpp"
#include "node/store_link.hpp"

namespace godwit::node {
namespace {

using namespace std::chrono_literals;

/// A daemon's port on loopback that serves a store, and the config of a peer that may ask it.
class PeerServerTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/godwit-links-XXXXXX";
    directory_ = mkdtemp(pattern);
    store_ = std::move(*store::open_sqlite(directory_ + "/pods.db"));
    config_.node = "a";
    config_.plain = true;
    config_.key = "the key of the cluster";
    start();
    config_.peers = {{"b", "127.0.0.1:" + std::to_string(port_)}};
  }
  void TearDown() override {
    server_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  void start(std::size_t most = 16) {
    auto listener = listen_tcp("127.0.0.1", port_);
    ASSERT_TRUE(listener) << listener.error().message();
    sockaddr_in name{};
    socklen_t size = sizeof name;
    getsockname(listener->get(), reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
    server_ = std::make_unique<Server>(std::move(*listener), most, 64, [this](Tasks::Connection& connection) {
      const auto caller = respond(
          connection.stream, {"b", config_.key}, [](const std::string& peer) { return peer == "a" ? "" : "not known"; },
          [&connection](const std::string& service) {
            connection.trust();
            return service == service::store;
          },
          in(5s));
      if (!caller || !connection.charge(caller->peer)) return;
      shaken_++;
      serve_store(connection.stream, caller->peer, *store_, [](const store::Record&) { return Result<void>{}; });
    });
  }

  std::string directory_;
  std::uint16_t port_ = 0;
  Config config_;
  std::unique_ptr<store::Store> store_;
  std::atomic<int> shaken_ = 0;
  std::unique_ptr<Server> server_;
  store::Record redis_{"redis", "id-1", "a", 1, "10.66.0.21", "a"};
};

/// What `source` says of one of its moves.
store::Note move_of(const std::string& source, int number, const std::string& kind = "move") {
  return {kind, fmt::format("{:012x}-{:04}", number, number), fmt::format(R"({{"source": "{}"}})", source), false};
}

TEST_F(PeerServerTest, StoreOverTheLinkBehavesAsTheStore) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  ASSERT_TRUE(remote->create(redis_));
  const auto taken = remote->create({"redis", "id-2", "a", 1, "", "a"});
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().kind, ErrorKind::busy);
  EXPECT_EQ((**remote->get("redis")).address, "10.66.0.21");
  EXPECT_FALSE(*remote->get("nothing"));
  EXPECT_EQ(remote->list()->size(), 1u);
  EXPECT_TRUE(*remote->move(redis_, "c"));
  EXPECT_FALSE(*remote->move(redis_, "c"));
  EXPECT_EQ((**store_->get("redis")).owner, "c");
  EXPECT_FALSE(*remote->remove(redis_));
  EXPECT_TRUE(*remote->remove(**remote->get("redis")));
  ASSERT_TRUE(remote->put({"node", "a", "here", false}, {.lease = 60s}));
  for (int i = 0; i < 5; i++) ASSERT_TRUE(remote->put(move_of("a", i), {.most = 3}));
  EXPECT_EQ(remote->notes("move")->size(), 5u);
  EXPECT_EQ(remote->notes("node", "a")->front().value, "here");
  EXPECT_FALSE(remote->notes("node")->front().away);
  EXPECT_EQ(store_->notes("node")->size(), 1u);
  ASSERT_TRUE(remote->erase("node", "a"));
  EXPECT_TRUE(remote->notes("node")->empty());
  EXPECT_EQ(remote->put({"", "a", "", false}).error().kind, ErrorKind::invalid);
}

TEST_F(PeerServerTest, WhoeverIsSilentIsWaitedForOnlyUntilItIsCancelled) {
  // The kernel takes the connection, and nobody is behind it.
  const auto silent = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(silent);
  sockaddr_in name{};
  socklen_t size = sizeof name;
  getsockname(silent->get(), reinterpret_cast<sockaddr*>(&name), &size);
  config_.peers = {{"b", "127.0.0.1:" + std::to_string(ntohs(name.sin_port))}};
  const Links links(config_);
  std::atomic<bool> cancelled = false;
  const auto begin = std::chrono::steady_clock::now();
  auto waiting = std::async(std::launch::async, [&] {
    const Interruptible until(cancelled);
    return links.connect("b", service::starter, 10s);
  });
  EXPECT_EQ(waiting.wait_for(200ms), std::future_status::timeout);
  cancelled = true;
  const auto connected = waiting.get();
  ASSERT_FALSE(connected);
  EXPECT_EQ(connected.error().kind, ErrorKind::cancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
  // It is over with its scope: what this thread waits for later isn't cancelled.
  const auto later = links.connect("b", service::starter, 100ms);
  ASSERT_FALSE(later);
  EXPECT_EQ(later.error().kind, ErrorKind::unreachable);
}

TEST_F(PeerServerTest, APeerWritesNoNotesButItsOwn) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  const auto put = [&](const store::Note& note) {
    const auto done = remote->put(note, {.lease = 60s});
    return done ? std::optional<ErrorKind>() : done.error().kind;
  };
  EXPECT_EQ(put({"node", "c", "{}", false}), ErrorKind::refused);
  EXPECT_EQ(put({"gossip", "a", "{}", false}), ErrorKind::refused);
  store::Note line = move_of("a", 1);
  line.value += std::string(64 * KiB, ' ');
  EXPECT_EQ(put(line), ErrorKind::invalid);
  EXPECT_EQ(put(move_of("c", 1)), ErrorKind::refused);
  EXPECT_EQ(put({"move", move_of("a", 1).key, "nonsense", false}), ErrorKind::refused);
  for (const char* key : {"1", "000000000001", "00000000001-x", "00000000000g-x", "ffffffffffff-x"})
    EXPECT_EQ(put({"move", key, move_of("a", 1).value, false}), ErrorKind::invalid) << key;
  // Nor over another's. A report may be long.
  ASSERT_TRUE(store_->put(move_of("c", 2, "report")));
  EXPECT_EQ(put(move_of("a", 2, "report")), ErrorKind::refused);
  store::Note report = move_of("a", 3, "report");
  report.value += std::string(200 * KiB, ' ');
  EXPECT_EQ(put(report), std::nullopt);
  EXPECT_EQ(put(report), std::nullopt) << "the same once more";
  EXPECT_EQ(remote->notes("report")->size(), 2u);
}

TEST_F(PeerServerTest, APeerErasesItselfAndWhoIsAway) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  ASSERT_TRUE(store_->put({"node", "c", R"({"state": "ok"})", false}, {.lease = 60s}));
  EXPECT_EQ(remote->erase("node", "c").error().kind, ErrorKind::refused);
  EXPECT_EQ(remote->erase("node", "").error().kind, ErrorKind::refused);
  ASSERT_TRUE(store_->put({"node", "c", R"({"state": "away"})", false}, {.lease = 60s}));
  EXPECT_TRUE(remote->erase("node", "c"));
  EXPECT_TRUE(store_->notes("node", "c")->empty());
  ASSERT_TRUE(store_->put(move_of("a", 1)));
  EXPECT_EQ(remote->erase("move", move_of("a", 1).key).error().kind, ErrorKind::refused);
  EXPECT_EQ(store_->notes("move")->size(), 1u);
}

TEST_F(PeerServerTest, HowManyMovesStayIsNotThePeersToSay) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  for (std::uint64_t i = 0; i < Journal::most; i++) ASSERT_TRUE(store_->put(move_of("c", static_cast<int>(i))));
  const int newest = Journal::most;
  ASSERT_TRUE(remote->put(move_of("a", newest), {.most = 1}));
  ASSERT_TRUE(remote->put(move_of("a", newest + 1)));
  const auto moves = *store_->notes("move");
  ASSERT_EQ(moves.size(), Journal::most);
  EXPECT_EQ(moves.front().key, move_of("c", 2).key);
}

TEST_F(PeerServerTest, CallsReuseTheOpenConnection) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  for (int i = 0; i < 20; i++) ASSERT_TRUE(remote->get("redis"));
  // One that keeps it warm and one of ours, at most.
  EXPECT_LE(shaken_, 2);
}

TEST_F(PeerServerTest, StoreThatIsAwayIsUnreachableAndComesBack) {
  const Links links(config_);
  const auto remote = open_store_link(links, "b");
  ASSERT_TRUE(remote->create(redis_));
  server_.reset();
  const auto away = remote->get("redis");
  ASSERT_FALSE(away);
  EXPECT_EQ(away.error().kind, ErrorKind::unreachable);
  EXPECT_EQ(remote->move(redis_, "c").error().kind, ErrorKind::unreachable);
  start();
  // The connections it had are broken; that is found out and repaired within the call.
  ASSERT_TRUE(remote->get("redis"));
  server_.reset();
  start();
  EXPECT_TRUE(*remote->move(redis_, "c"));
}

TEST_F(PeerServerTest, UnknownPeersAndWrongKeys) {
  Links links(config_);
  const auto nobody = links.connect("z", service::store, 5s);
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().kind, ErrorKind::not_found);
  EXPECT_NE(nobody.error().message().find("known here: a, b"), std::string::npos);
  Config other = config_;
  other.key = "a different key";
  const auto wrong = Links(other).connect("b", service::store, 5s);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().kind, ErrorKind::refused);
}

TEST_F(PeerServerTest, NoPeerTakesAllConnections) {
  const Links links(config_);
  std::vector<Stream> open;
  for (int i = 0; i < 20; i++) {
    auto stream = links.connect("b", service::store, 5s);
    ASSERT_TRUE(stream) << stream.error().message();
    open.push_back(std::move(*stream));
  }
  char byte = 0;
  for (std::size_t i = 16; i < open.size(); i++) {
    const auto got = read_some(open[i], &byte, 1, in(5s));
    EXPECT_TRUE(got && *got == 0) << i;
  }
  EXPECT_EQ(shaken_, 16);
  // What ends makes room for others of the same peer.
  open.clear();
  const Deadline patience = in(10s);
  while (shaken_ == 16 && std::chrono::steady_clock::now() < patience) {
    open.push_back(*links.connect("b", service::store, 5s));
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_GT(shaken_, 16);
}

TEST_F(PeerServerTest, SilentPeersDontKeepOthersOut) {
  server_.reset();
  start(4);
  const Links links(config_);
  auto trusted = links.connect("b", service::store, 5s);
  ASSERT_TRUE(trusted) << trusted.error().message();
  std::vector<Fd> silent;
  for (int i = 0; i < 12; i++) {
    auto fd = connect_tcp("127.0.0.1", port_, in(5s));
    ASSERT_TRUE(fd) << fd.error().message();
    silent.push_back(std::move(*fd));
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(links.connect("b", service::store, 5s));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 1s) << "must not wait for the silent ones' time to run out";
  pollfd poll_trusted{trusted->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&poll_trusted, 1, 0), 0) << "a trusted connection must not be broken off for strangers";
}

TEST_F(PeerServerTest, GarbageFromATrustedPeerEndsItsConnectionOnly) {
  const Links links(config_);
  auto fd = links.connect("b", service::store, 5s);
  ASSERT_TRUE(fd) << fd.error().message();
  const Bytes garbage{0xdf, 0xff, 0xff, 0xff, 0xff};
  ASSERT_TRUE(write_frame(*fd, garbage, in(5s)));
  char byte;
  const auto end = read_some(*fd, &byte, 1, in(5s));
  EXPECT_TRUE(!end || *end == 0);
  EXPECT_TRUE(links.connect("b", service::store, 5s));
}

}  // namespace
}  // namespace godwit::node
