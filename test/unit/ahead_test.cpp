#include "objects/ahead.hpp"

#include <array>

#include "kernel/tcp_memory.hpp"
#include "objects/tcp_state.hpp"
#include "socket_fixture.hpp"

namespace godwit::objects::socket_testing {
namespace {

/// The pod's end of a connection and the peer's.
struct Pair {
  int pod = -1, peer = -1;
};

/// With a port of its own each time: a connection may have given up sharing its.
sockaddr_in pod_address() {
  static std::uint16_t port = 1080;
  sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(port++)};
  ::inet_pton(AF_INET, "10.9.0.2", &address.sin_addr);
  return address;
}

Pair connected(Net& net) {
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  set_int(listener.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  const auto address = pod_address();
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  EXPECT_EQ(::bind(listener.get(), generic, sizeof(address)), 0);
  EXPECT_EQ(::listen(listener.get(), 16), 0);
  Pair pair;
  pair.peer = net.at_peer([&] {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(::connect(fd, generic, sizeof(address)), 0);
    return fd;
  });
  pair.pod = ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC);
  return pair;
}

void talk(int one, int other, const std::string& text) {
  EXPECT_TRUE(write_all(one, text));
  EXPECT_EQ(read_some(other), text);
}

void talk(const Pair& pair) {
  talk(pair.peer, pair.pod, "ping");
  talk(pair.pod, pair.peer, "pong");
}

/// The pod's end is captured and built ahead; then `meanwhile`; then it moves if it is kept. Whether it was.
bool moved_ahead(const Pair& pair, const std::function<void()>& meanwhile) {
  AheadSource ahead;
  AheadDestination there;
  FakeDestination destination;
  FakeSource running;
  running.add(pair.pod);
  auto images = ahead.look(running.all);
  EXPECT_TRUE(images) << (images ? "" : images.error().message());
  if (!images || images->size() != 1) return false;
  const auto key = images->front().key;
  expect_ok(there.build(images->front(), destination));
  EXPECT_TRUE(ahead.look(running.all)->empty());

  meanwhile();

  FakeSource frozen;
  frozen.add(pair.pod);
  expect_ok(ahead.compare(frozen));
  auto kept = ahead.keep(frozen.all.front(), frozen);
  EXPECT_TRUE(kept) << (kept ? "" : kept.error().message());
  if (!kept || !*kept) return false;
  EXPECT_EQ((*kept)->key, key);
  EXPECT_TRUE((*kept)->holders.empty());
  const Fd placeholder(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  set_int(pair.pod, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON);
  EXPECT_EQ(::dup3(placeholder.get(), pair.pod, O_CLOEXEC), pair.pod);
  expect_ok(there.finish({**kept}, destination));
  const Fd made = there.take(key);
  expect_ok(kind_named("tcp")->open({}, made.get(), destination));
  EXPECT_EQ(::dup3(made.get(), pair.pod, O_CLOEXEC), pair.pod);
  return true;
}

TEST(Ahead, QuietConnectionGoesOn) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    talk(pair);
    set_int(pair.pod, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int(pair.pod, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set_int(pair.pod, SOL_SOCKET, SO_REUSEADDR, 1);
    EXPECT_TRUE(moved_ahead(pair, [] {}));
    for (int round = 0; round < 100; ++round) talk(pair);
    EXPECT_EQ(get_int(pair.pod, IPPROTO_TCP, TCP_NODELAY), 1);
    EXPECT_EQ(get_int(pair.pod, IPPROTO_TCP, TCP_KEEPIDLE), 77);
    EXPECT_EQ(get_int(pair.pod, SOL_SOCKET, SO_REUSEADDR), 1);
    tcp_info info{};
    socklen_t length = sizeof(info);
    EXPECT_EQ(::getsockopt(pair.peer, IPPROTO_TCP, TCP_INFO, &info, &length), 0);
    EXPECT_EQ(info.tcpi_total_retrans, 0u);
  });
}

TEST(Ahead, WhatWasSaidSinceIsKnown) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    EXPECT_TRUE(moved_ahead(pair, [&] {
      for (int round = 0; round < 50; ++round) talk(pair);
    }));
    for (int round = 0; round < 100; ++round) talk(pair);
  });
}

TEST(Ahead, WhatWaitsTravels) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    talk(pair);
    EXPECT_TRUE(moved_ahead(pair, [&] {
      EXPECT_TRUE(write_all(pair.peer, "unread"));
      wait_for(pair.pod, POLLIN);
    }));
    EXPECT_EQ(read_some(pair.pod), "unread");
    talk(pair);
  });
}

TEST(Ahead, ChangedOptionIsSeen) {
  const std::vector<std::function<void(int)>> changes{
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_CORK, 1); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 7); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 3); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_LINGER2, 9); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096); },
      [](int fd) { set_int(fd, IPPROTO_TCP, TCP_INQ, 1); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_RCVBUF, 100'000); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_SNDBUF, 100'000); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_PRIORITY, 3); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 3); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_PEEK_OFF, 0); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_REUSEADDR, 0); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_MARK, 5); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_DONTROUTE, 1); },
      [](int fd) { set_int(fd, SOL_SOCKET, SO_TIMESTAMP, 1); },
      [](int fd) { set_int(fd, IPPROTO_IP, IP_TOS, 8); },
      [](int fd) { set_int(fd, IPPROTO_IP, IP_TTL, 31); },
      [](int fd) { set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, 2); },
      [](int fd) { set_int(fd, IPPROTO_IP, IP_RECVERR, 1); },
      [](int fd) { set_int(fd, IPPROTO_IP, IP_MINTTL, 2); },
      [](int fd) {
        const linger value{1, 5};
        EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, sizeof(value)), 0);
      },
      [](int fd) {
        const timeval value{5, 0};
        EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value)), 0);
      },
      [](int fd) {
        const timeval value{5, 0};
        EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value)), 0);
      },
      [](int fd) {
        const unsigned value = 1'000'000;
        EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)), 0);
      },
      [](int fd) { EXPECT_EQ(::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0); },
      [](int fd) { EXPECT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0); },
      [](int fd) { EXPECT_EQ(::fcntl(fd, F_SETOWN, ::getpid()), 0); },
      [](int fd) { EXPECT_EQ(::fchown(fd, 7, 8), 0); },
      [](int fd) { EXPECT_EQ(::shutdown(fd, SHUT_WR), 0); },
  };
  isolated([&] {
    Net net;
    for (std::size_t i = 0; i < changes.size(); ++i) {
      const auto pair = connected(net);
      talk(pair);
      EXPECT_FALSE(moved_ahead(pair, [&] { changes[i](pair.pod); })) << "change " << i;
      ::close(pair.pod);
      ::close(pair.peer);
    }
  });
}

TEST(Ahead, FreezeThatIsPutOff) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    talk(pair);
    AheadSource ahead;
    AheadDestination there;
    FakeDestination destination;
    FakeSource source;
    source.add(pair.pod);
    const auto images = ahead.look(source.all);
    ASSERT_TRUE(images && images->size() == 1);
    expect_ok(there.build(images->front(), destination));
    const auto keep = [&] {
      expect_ok(ahead.compare(source));
      auto kept = ahead.keep(source.all.front(), source);
      EXPECT_TRUE(kept && *kept);
      return **kept;
    };
    const auto kept = keep();
    const Fd placeholder(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    set_int(pair.pod, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON);
    EXPECT_EQ(::dup3(placeholder.get(), pair.pod, O_CLOEXEC), pair.pod);
    expect_ok(there.finish({kept}, destination));
    expect_ok(there.finish({kept}, destination));
    const Fd made = there.take(images->front().key);
    expect_ok(kind_named("tcp")->open({}, made.get(), destination));
    EXPECT_EQ(::dup3(made.get(), pair.pod, O_CLOEXEC), pair.pod);
    for (int round = 0; round < 100; ++round) talk(pair);
  });
}

TEST(Ahead, WhoIsNotKeptAgainLeavesItsNumber) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    talk(pair);
    AheadSource ahead;
    AheadDestination there;
    FakeDestination destination;
    FakeSource source;
    source.add(pair.pod);
    const auto images = ahead.look(source.all);
    ASSERT_TRUE(images && images->size() == 1);
    expect_ok(there.build(images->front(), destination));
    const int number = there.built(images->front().key);
    expect_ok(ahead.compare(source));
    const auto kept = ahead.keep(source.all.front(), source);
    ASSERT_TRUE(kept && *kept);
    const Fd placeholder(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    set_int(pair.pod, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON);
    EXPECT_EQ(::dup3(placeholder.get(), pair.pod, O_CLOEXEC), pair.pod);
    expect_ok(there.finish({**kept}, destination));
    // The freeze is put off, and in the next one the connection is another.
    expect_ok(there.finish({}, destination));
    there.clear();
    const auto* tcp = kind_named("tcp");
    const tcp::State state{.family = AF_INET, .phase = tcp::Phase::listening, .backlog = 1};
    auto listener = tcp->build(image::pack(state), destination);
    ASSERT_TRUE(listener) << listener.error().message();
    const Fd moved(::fcntl(listener->get(), F_DUPFD_CLOEXEC, number + 1));
    ASSERT_EQ(::dup3(moved.get(), number, O_CLOEXEC), number);
    // As a connection it would have to leave repair mode, which a listening socket can't.
    expect_ok(tcp->open(image::pack(state), number, destination));
  });
}

TEST(Ahead, OnlyWhatLastsIsTakenAhead) {
  const std::vector<std::function<void(tcp::Connection&)>> more{
      [](tcp::Connection& connection) { connection.received = {1}; },
      [](tcp::Connection& connection) { connection.sending = {1}; },
      [](tcp::Connection& connection) { connection.in_flight = 1; },
      [](tcp::Connection& connection) { connection.our_fin = tcp::Fin::queued; },
      [](tcp::Connection& connection) { connection.our_fin = tcp::Fin::acknowledged; },
      [](tcp::Connection& connection) { connection.our_fin_sent = true; },
      [](tcp::Connection& connection) { connection.their_fin = true; },
      [](tcp::Connection& connection) { connection.receive_shut = true; },
  };
  isolated([&] {
    Net net;
    const auto pair = connected(net);
    talk(pair);
    AheadSource ahead;
    FakeSource source;
    source.add(pair.pod);
    const auto images = ahead.look(source.all);
    ASSERT_TRUE(images && images->size() == 1);
    const auto taken = [&](const std::function<void(tcp::Connection&)>& change) {
      auto state = *image::unpack<tcp::State>(images->front().state);
      change(state.connection.front());
      AheadDestination there;
      FakeDestination destination;
      return there.build({1, image::pack(state), {}}, destination);
    };
    EXPECT_TRUE(taken([](tcp::Connection&) {}));
    for (std::size_t i = 0; i < more.size(); ++i) {
      const auto outcome = taken(more[i]);
      EXPECT_TRUE(!outcome && outcome.error().kind == ErrorKind::invalid) << i;
    }
  });
}

TEST(Ahead, AnotherSocketUnderTheNumberIsSeen) {
  isolated([] {
    Net net;
    const auto pair = connected(net), other = connected(net);
    EXPECT_FALSE(moved_ahead(pair, [&] { EXPECT_EQ(::dup3(other.pod, pair.pod, O_CLOEXEC), pair.pod); }));
  });
}

TEST(TcpMemory, SameWhileItIsUsed) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    auto* memory = kernel::TcpMemory::get().value_or(nullptr);
    ASSERT_NE(memory, nullptr);
    const std::array fds{pair.pod, pair.peer};
    const auto before = memory->read(fds);
    ASSERT_TRUE(before);
    for (int round = 0; round < 100; ++round) talk(pair);
    auto after = memory->read(fds);
    // The last word is acknowledged with a delay.
    for (int i = 0; i < 200 && after && !memory->progress((*after)[0], 0).quiet; ++i) {
      ::usleep(5'000);
      after = memory->read(fds);
    }
    ASSERT_TRUE(after);
    for (std::size_t i = 0; i < fds.size(); ++i) {
      EXPECT_TRUE(memory->same_options((*before)[i], (*after)[i])) << i;
      EXPECT_TRUE(memory->progress((*after)[i], 0).quiet) << i;
    }
    EXPECT_FALSE(memory->same_options((*after)[0], (*after)[1]));
    EXPECT_EQ(memory->progress((*after)[0], 0).sent, memory->progress((*after)[1], 0).received);
  });
}

}  // namespace
}  // namespace godwit::objects::socket_testing
