#include <chrono>
#include <numeric>

#include "kernel/sock_diag.hpp"
#include "socket_fixture.hpp"

namespace godwit::objects::socket_testing {
namespace {

sockaddr_storage address_of(int family, bool pod, int port, socklen_t& length) {
  sockaddr_storage storage{};
  if (family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<std::uint16_t>(port));
    ::inet_pton(AF_INET, pod ? "10.9.0.2" : "10.9.0.1", &v4.sin_addr);
    length = sizeof(v4);
  } else {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<std::uint16_t>(port));
    ::inet_pton(AF_INET6, pod ? "fd09::2" : "fd09::1", &v6.sin6_addr);
    length = sizeof(v6);
  }
  return storage;
}

int listen_on(int family, bool pod, int port, int backlog = 16) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  socklen_t length = 0;
  const auto address = address_of(family, pod, port, length);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), length), 0);
  EXPECT_EQ(::listen(fd, backlog), 0);
  return fd;
}

int connect_to(int family, bool pod, int port) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t length = 0;
  const auto address = address_of(family, pod, port, length);
  EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address), length), 0) << std::strerror(errno);
  return fd;
}

tcp_info info_of(int fd) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length), 0);
  return info;
}

/// The pod's end of a connection, accepted from a listener in the pod, and the peer's.
struct Pair {
  int listener = -1, pod = -1, peer = -1;
};
Pair connected(Net& net, int family = AF_INET) {
  Pair pair;
  pair.listener = listen_on(family, true, 80);
  pair.peer = net.at_peer([&] { return connect_to(family, true, 80); });
  pair.pod = ::accept4(pair.listener, nullptr, nullptr, SOCK_CLOEXEC);
  EXPECT_GE(pair.pod, 0);
  return pair;
}

/// No segment gets to a socket with this filter.
void deafen(int fd) {
  struct {
    std::uint16_t code;
    std::uint8_t jt, jf;
    std::uint32_t k;
  } drop{0x06, 0, 0, 0};
  struct {
    unsigned short length;
    void* program;
  } filter{1, &drop};
  EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)), 0);
}
void undeafen(int fd) {
  set_int(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
}

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i * 7 + i / 251) % 26);
  return text;
}

void expect_talk(int one, int other) {
  EXPECT_TRUE(write_all(one, "ping"));
  EXPECT_EQ(read_some(other), "ping");
  EXPECT_TRUE(write_all(other, "pong"));
  EXPECT_EQ(read_some(one), "pong");
}

/// Reads a pending reset or error, if any.
int error_of(int fd) {
  return get_int(fd, SOL_SOCKET, SO_ERROR);
}

void established(int family) {
  isolated([family] {
    Net net;
    const auto pair = connected(net, family);
    expect_talk(pair.pod, pair.peer);
    EXPECT_TRUE(write_all(pair.peer, "unread"));
    wait_for(pair.pod, POLLIN);
    const auto before = info_of(pair.pod);
    expect_ok(move_all({pair.listener, pair.pod}));
    const auto after = info_of(pair.pod);
    EXPECT_EQ(after.tcpi_state, 1);
    EXPECT_EQ(after.tcpi_options & 7, before.tcpi_options & 7);
    EXPECT_EQ(after.tcpi_snd_wscale, before.tcpi_snd_wscale);
    EXPECT_EQ(after.tcpi_rcv_wscale, before.tcpi_rcv_wscale);
    EXPECT_EQ(after.tcpi_snd_mss, before.tcpi_snd_mss);
    EXPECT_EQ(read_some(pair.pod), "unread");
    for (int round = 0; round < 100; ++round) expect_talk(pair.pod, pair.peer);
    EXPECT_EQ(info_of(pair.peer).tcpi_total_retrans, 0u);
    EXPECT_EQ(info_of(pair.pod).tcpi_total_retrans, 0u);
    // The listener goes on too, beside the connection of the same port.
    const int second = net.at_peer([&] { return connect_to(family, true, 80); });
    const int accepted = ::accept4(pair.listener, nullptr, nullptr, SOCK_CLOEXEC);
    expect_talk(second, accepted);
    EXPECT_EQ(::close(pair.peer), 0);
    EXPECT_EQ(read_some(pair.pod), "");
    EXPECT_EQ(error_of(pair.pod), 0);
  });
}

TEST(Tcp, EstablishedGoesOn) {
  established(AF_INET);
}
TEST(Tcp, EstablishedGoesOnOverIpv6) {
  established(AF_INET6);
}

TEST(Tcp, Ipv4PeerOfAnIpv6Socket) {
  isolated([] {
    Net net;
    const int listener = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    set_int(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    any.sin6_port = htons(80);
    ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&any), sizeof(any)), 0);
    ASSERT_EQ(::listen(listener, 5), 0);
    const int peer = net.at_peer([] { return connect_to(AF_INET, true, 80); });
    const int pod = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    EXPECT_EQ(::shutdown(peer, SHUT_WR), 0);
    wait_for(pod, POLLRDHUP);
    expect_ok(move_all({pod, listener}));
    EXPECT_EQ(read_some(pod), "");
    EXPECT_TRUE(write_all(pod, "answer"));
    EXPECT_EQ(read_some(peer), "answer");
    const int second = net.at_peer([] { return connect_to(AF_INET6, true, 80); });
    EXPECT_GE(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), 0);
    ::close(second);
  });
}

TEST(Tcp, ClientSideGoesOn) {
  isolated([] {
    Net net;
    const int listener = net.at_peer([] { return listen_on(AF_INET, false, 90); });
    const int pod = connect_to(AF_INET, false, 90);
    const int peer = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    expect_ok(move_all({pod}));
    expect_talk(pod, peer);
    EXPECT_EQ(get_int(pod, SOL_SOCKET, SO_REUSEADDR), 0);
  });
}

TEST(Tcp, CaptureAloneChangesNothing) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    EXPECT_TRUE(write_all(pair.peer, "unread"));
    deafen(pair.peer);
    EXPECT_TRUE(write_all(pair.pod, "unacknowledged"));
    set_int(pair.pod, SOL_SOCKET, SO_PEEK_OFF, 2);
    wait_for(pair.pod, POLLIN);
    for (int round = 0; round < 3; ++round) {
      const auto images = capture_all({pair.listener, pair.pod});
      ASSERT_TRUE(images) << images.error().message();
    }
    EXPECT_EQ(get_int(pair.pod, SOL_SOCKET, SO_PEEK_OFF), 2);
    EXPECT_EQ(get_int(pair.pod, SOL_SOCKET, SO_REUSEADDR), 1);
    EXPECT_EQ(get_int(pair.pod, IPPROTO_TCP, TCP_REPAIR), 0);
    undeafen(pair.peer);
    EXPECT_EQ(read_some(pair.pod), "unread");
    EXPECT_EQ(read_some(pair.peer), "unacknowledged");
    expect_talk(pair.pod, pair.peer);
  });
}

TEST(Tcp, UnacknowledgedBytesAreSentAgainAtOnce) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    deafen(pair.peer);
    EXPECT_TRUE(write_all(pair.pod, "lost on the way"));
    const auto begin = std::chrono::steady_clock::now();
    const auto images = capture_all({pair.pod});
    FakeDestination destination;
    close_silently(pair.pod);
    auto built = tcp_kind.build(images->front(), destination);
    ASSERT_TRUE(built) << built.error().message();
    undeafen(pair.peer);
    expect_ok(tcp_kind.open(images->front(), built->get(), destination));
    EXPECT_EQ(read_some(pair.peer), "lost on the way");
    // A retransmission timer would have cost 200 ms at least.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(150));
    expect_talk(built->get(), pair.peer);
  });
}

TEST(Tcp, BuiltButNotOpenedIsSilent) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    EXPECT_TRUE(write_all(pair.peer, pattern(100)));
    wait_for(pair.pod, POLLIN);
    const auto images = capture_all({pair.pod});
    close_silently(pair.pod);
    FakeDestination destination;
    const auto before = info_of(pair.peer);
    auto built = tcp_kind.build(images->front(), destination);
    ASSERT_TRUE(built) << built.error().message();
    EXPECT_EQ(info_of(pair.peer).tcpi_segs_in, before.tcpi_segs_in);
    expect_ok(tcp_kind.open(images->front(), built->get(), destination));
    EXPECT_TRUE(write_all(built->get(), "after"));
    EXPECT_EQ(read_some(pair.peer), "after");
  });
}

/// Queues full in both directions: the peer doesn't read, and the pod doesn't either.
void full_queues(bool finish) {
  isolated([finish] {
    Net net;
    const auto pair = connected(net);
    const int flags = O_NONBLOCK;
    ASSERT_EQ(::fcntl(pair.pod, F_SETFL, flags), 0);
    ASSERT_EQ(::fcntl(pair.peer, F_SETFL, flags), 0);
    const auto text = pattern(8 * MiB);
    set_int(pair.pod, SOL_SOCKET, SO_SNDBUF, 2 << 20);
    set_int(pair.peer, SOL_SOCKET, SO_SNDBUF, 2 << 20);
    const ssize_t out = ::send(pair.pod, text.data(), text.size(), 0);
    const ssize_t in = ::send(pair.peer, text.data(), text.size(), 0);
    ASSERT_GT(out, 100'000);
    ASSERT_GT(in, 100'000);
    if (finish) {
      EXPECT_EQ(::shutdown(pair.pod, SHUT_WR), 0);
    }
    int unsent = 0;
    ::ioctl(pair.pod, 0x894B /* SIOCOUTQNSD */, &unsent);
    EXPECT_GT(unsent, 0);
    // Until both windows are shut and nothing is on the way. Should the peer probe its window, nobody answers.
    while (info_of(pair.pod).tcpi_unacked != 0 || info_of(pair.peer).tcpi_unacked != 0) ::poll(nullptr, 0, 1);
    deafen(pair.listener);
    expect_ok(move_all({pair.pod}));
    EXPECT_EQ(::fcntl(pair.pod, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    EXPECT_TRUE(read_all(pair.peer, static_cast<std::size_t>(out)) == text.substr(0, static_cast<std::size_t>(out)));
    EXPECT_TRUE(read_all(pair.pod, static_cast<std::size_t>(in)) == text.substr(0, static_cast<std::size_t>(in)));
    if (finish) {
      EXPECT_EQ(read_some(pair.peer), "");
      EXPECT_TRUE(write_all(pair.peer, "still"));
      EXPECT_EQ(read_some(pair.pod), "still");
    } else {
      expect_talk(pair.pod, pair.peer);
    }
    EXPECT_EQ(error_of(pair.pod), 0);
    EXPECT_EQ(error_of(pair.peer), 0);
  });
}
TEST(Tcp, FullQueuesBothWays) {
  full_queues(false);
}
TEST(Tcp, FinBehindAFullQueue) {
  full_queues(true);
}

TEST(Tcp, ManyBytesInFlightStaySent) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    // Grow the congestion window, then lose sight of the peer.
    const auto text = pattern(4 * MiB);
    std::size_t sent = 0;
    for (int round = 0; round < 8; ++round) {
      std::size_t at = 0;
      ASSERT_EQ(::fcntl(pair.pod, F_SETFL, O_NONBLOCK), 0);
      while (at < text.size()) {
        const ssize_t count = ::send(pair.pod, text.data() + at, text.size() - at, 0);
        if (count > 0) at += static_cast<std::size_t>(count);
        std::string sink(1 << 20, 0);
        const ssize_t got = ::recv(pair.peer, sink.data(), sink.size(), MSG_DONTWAIT);
        if (got > 0) sent += static_cast<std::size_t>(got);
      }
    }
    while (sent < 8 * text.size()) sent += read_some(pair.peer).size();
    deafen(pair.peer);
    const ssize_t out = ::send(pair.pod, text.data(), 300'000, 0);
    ASSERT_EQ(out, 300'000);
    int unsent = 0;
    ::ioctl(pair.pod, 0x894B, &unsent);
    EXPECT_LT(unsent, 250'000);
    expect_ok(move_all({pair.pod}));
    undeafen(pair.peer);
    EXPECT_TRUE(read_all(pair.peer, 300'000) == text.substr(0, 300'000));
    ASSERT_EQ(::fcntl(pair.pod, F_SETFL, 0), 0);
    expect_talk(pair.pod, pair.peer);
  });
}

TEST(Tcp, CloseWait) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    EXPECT_TRUE(write_all(pair.peer, "last words"));
    EXPECT_EQ(::shutdown(pair.peer, SHUT_WR), 0);
    wait_for(pair.pod, POLLRDHUP);
    ASSERT_EQ(info_of(pair.pod).tcpi_state, 8);
    expect_ok(move_all({pair.pod}));
    EXPECT_EQ(info_of(pair.pod).tcpi_state, 8);
    EXPECT_EQ(read_some(pair.pod), "last words");
    EXPECT_EQ(read_some(pair.pod), "");
    EXPECT_TRUE(write_all(pair.pod, "reply"));
    EXPECT_EQ(read_some(pair.peer), "reply");
    EXPECT_EQ(::close(pair.pod), 0);
    EXPECT_EQ(read_some(pair.peer), "");
    EXPECT_EQ(error_of(pair.peer), 0);
  });
}

TEST(Tcp, FinWait2) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    EXPECT_TRUE(write_all(pair.pod, "question"));
    EXPECT_EQ(::shutdown(pair.pod, SHUT_WR), 0);
    EXPECT_EQ(read_some(pair.peer), "question");
    EXPECT_EQ(read_some(pair.peer), "");
    EXPECT_TRUE(write_all(pair.peer, "before"));
    wait_for(pair.pod, POLLIN);
    ASSERT_EQ(info_of(pair.pod).tcpi_state, 5);
    expect_ok(move_all({pair.pod}));
    EXPECT_EQ(info_of(pair.pod).tcpi_state, 5);
    EXPECT_FALSE(write_all(pair.pod, "x"));
    EXPECT_EQ(errno, EPIPE);
    EXPECT_TRUE(write_all(pair.peer, " after"));
    EXPECT_EQ(read_all(pair.pod, 12), "before after");
    EXPECT_EQ(::close(pair.peer), 0);
    EXPECT_EQ(read_some(pair.pod), "");
    EXPECT_EQ(error_of(pair.pod), 0);
  });
}

TEST(Tcp, FinWait1AndLastAckAndClosing) {
  for (const int state : {4, 9, 11}) {
    isolated([state] {
      SCOPED_TRACE(state);
      Net net;
      const auto pair = connected(net);
      if (state == 9) {
        EXPECT_EQ(::shutdown(pair.peer, SHUT_WR), 0);
        wait_for(pair.pod, POLLRDHUP);
      }
      deafen(pair.peer);
      EXPECT_TRUE(write_all(pair.pod, "the end"));
      EXPECT_EQ(::shutdown(pair.pod, SHUT_WR), 0);
      if (state == 11) {
        EXPECT_EQ(::shutdown(pair.peer, SHUT_WR), 0);
        wait_for(pair.pod, POLLRDHUP);
      }
      ASSERT_EQ(info_of(pair.pod).tcpi_state, state);
      const auto images = capture_all({pair.pod});
      ASSERT_TRUE(images) << images.error().message();
      close_silently(pair.pod);
      FakeDestination destination;
      auto built = tcp_kind.build(images->front(), destination);
      ASSERT_TRUE(built) << built.error().message();
      EXPECT_EQ(info_of(built->get()).tcpi_state, state);
      undeafen(pair.peer);
      expect_ok(tcp_kind.open(images->front(), built->get(), destination));
      EXPECT_EQ(read_some(pair.peer), "the end");
      EXPECT_EQ(read_some(pair.peer), "");
      if (state == 4) {
        EXPECT_TRUE(write_all(pair.peer, "answer"));
        EXPECT_EQ(read_some(built->get()), "answer");
        EXPECT_EQ(::close(pair.peer), 0);
      }
      EXPECT_EQ(read_some(built->get()), "");
      EXPECT_EQ(error_of(built->get()), 0);
    });
  }
}

TEST(Tcp, ClosedConnections) {
  isolated([] {
    Net net;
    // In order, both sides; data left.
    auto pair = connected(net);
    EXPECT_EQ(::shutdown(pair.pod, SHUT_WR), 0);
    EXPECT_TRUE(write_all(pair.peer, "left"));
    EXPECT_EQ(::close(pair.peer), 0);
    wait_for(pair.pod, POLLHUP);
    ASSERT_EQ(info_of(pair.pod).tcpi_state, 7);
    expect_ok(move_all({pair.pod}));
    EXPECT_EQ(read_some(pair.pod), "left");
    EXPECT_EQ(read_some(pair.pod), "");
    EXPECT_FALSE(write_all(pair.pod, "x"));
    EXPECT_EQ(errno, EPIPE);
    ::close(pair.pod);
    // By a reset that the program has not seen.
    pair.peer = net.at_peer([&] { return connect_to(AF_INET, true, 80); });
    pair.pod = ::accept4(pair.listener, nullptr, nullptr, SOCK_CLOEXEC);
    const struct linger abort { 1, 0 };
    ::setsockopt(pair.peer, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
    EXPECT_EQ(::close(pair.peer), 0);
    wait_for(pair.pod, POLLERR);
    expect_ok(move_all({pair.pod}));
    EXPECT_EQ(error_of(pair.pod), ECONNRESET);
    EXPECT_EQ(error_of(pair.pod), 0);
    // Refused, unseen.
    const int refused = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t length = 0;
    const auto address = address_of(AF_INET, false, 1, length);
    ::connect(refused, reinterpret_cast<const sockaddr*>(&address), length);
    wait_for(refused, POLLERR);
    expect_ok(move_all({refused}));
    EXPECT_EQ(error_of(refused), ECONNREFUSED);
  });
}

TEST(Tcp, ConnectingSendsTheSameSyn) {
  isolated([] {
    Net net;
    // Its SYNs find nobody at first: no neighbour answers.
    Net::run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent");
    const int pod = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t length = 0;
    const auto address = address_of(AF_INET, false, 90, length);
    ASSERT_EQ(::connect(pod, reinterpret_cast<const sockaddr*>(&address), length), -1);
    ASSERT_EQ(errno, EINPROGRESS);
    const int listener = net.at_peer([] { return listen_on(AF_INET, false, 90); });
    Net::run("ip neigh del 10.9.0.1 dev eth0");
    sockaddr_in before{}, after{};
    length = sizeof(before);
    ::getsockname(pod, reinterpret_cast<sockaddr*>(&before), &length);
    expect_ok(move_all({pod}));
    EXPECT_TRUE(wait_for(pod, POLLOUT) & POLLOUT);
    EXPECT_EQ(error_of(pod), 0);
    ::getsockname(pod, reinterpret_cast<sockaddr*>(&after), &length);
    EXPECT_EQ(before.sin_port, after.sin_port);
    const int peer = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    expect_talk(pod, peer);
  });
}

TEST(Tcp, ListenersAndUnconnected) {
  isolated([] {
    Net net;
    const int listener = listen_on(AF_INET, true, 80, 7);
    set_int(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    set_int(listener, IPPROTO_TCP, TCP_FASTOPEN, 5);
    const int unbound = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    set_int(unbound, IPPROTO_TCP, TCP_MAXSEG, 1000);
    const int bound = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = 0;
    const auto address = address_of(AF_INET, true, 81, length);
    ASSERT_EQ(::bind(bound, reinterpret_cast<const sockaddr*>(&address), length), 0);
    expect_ok(move_all({listener, unbound, bound}));
    EXPECT_EQ(info_of(listener).tcpi_sacked, 7u);
    EXPECT_EQ(get_int(listener, IPPROTO_TCP, TCP_FASTOPEN), 5);
    EXPECT_EQ(get_int(listener, SOL_SOCKET, SO_REUSEADDR), 1);
    EXPECT_EQ(get_int(unbound, IPPROTO_TCP, TCP_MAXSEG), 1000);
    EXPECT_EQ(get_int(bound, SOL_SOCKET, SO_REUSEADDR), 0);
    const int client = net.at_peer([] { return connect_to(AF_INET, true, 80); });
    const int server = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    expect_talk(client, server);
    EXPECT_EQ(::listen(bound, 5), 0);
    const int other = net.at_peer([] { return connect_to(AF_INET, true, 81); });
    EXPECT_GE(::accept4(bound, nullptr, nullptr, SOCK_CLOEXEC), 0);
    ::close(other);
  });
}

TEST(Tcp, NotAcceptedYetIsBusy) {
  isolated([] {
    Net net;
    const int listener = listen_on(AF_INET, true, 80);
    const int peer = net.at_peer([] { return connect_to(AF_INET, true, 80); });
    wait_for(listener, POLLIN);
    const auto images = capture_all({listener});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::busy);
    const int pod = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    expect_ok(move_all({listener, pod}));
    expect_talk(pod, peer);
  });
}

TEST(Tcp, HandshakeInProgressIsBusy) {
  for (const int family : {AF_INET, AF_INET6}) {
    isolated([family] {
      Net net;
      const int listener = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in6 any{};
      any.sin6_family = AF_INET6;
      any.sin6_port = htons(80);
      ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&any), sizeof(any)), 0);
      ASSERT_EQ(::listen(listener, 5), 0);
      // A client that hears no answer: its handshake stays where it is.
      const int peer = net.at_peer([family] {
        const int fd = ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        deafen(fd);
        socklen_t length = 0;
        const auto address = address_of(family, true, 80, length);
        ::connect(fd, reinterpret_cast<const sockaddr*>(&address), length);
        return fd;
      });
      Result<std::vector<Bytes>> images;
      for (int round = 0; round < 1000; ++round) {
        images = capture_all({listener});
        if (!images) break;
        ::poll(nullptr, 0, 1);
      }
      ASSERT_FALSE(images);
      EXPECT_EQ(images.error().kind, ErrorKind::busy);
      ::close(peer);
    });
  }
}

TEST(Tcp, LingeringConnectionsAreCounted) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    auto diag = kernel::open_sock_diag(pair.listener);
    ASSERT_TRUE(diag);
    EXPECT_EQ(kernel::count_lingering_tcp(diag->get()).value_or(99), 0u);
    deafen(pair.peer);
    EXPECT_TRUE(write_all(pair.pod, "unacknowledged"));
    ::close(pair.pod);
    EXPECT_EQ(kernel::count_lingering_tcp(diag->get()).value_or(99), 1u);
    undeafen(pair.peer);
    EXPECT_EQ(read_some(pair.peer), "unacknowledged");
    ::close(pair.peer);
    for (int round = 0; round < 5000 && kernel::count_lingering_tcp(diag->get()).value_or(99) != 0; ++round)
      ::poll(nullptr, 0, 1);
    EXPECT_EQ(kernel::count_lingering_tcp(diag->get()).value_or(99), 0u);
  });
}

TEST(Tcp, RefusesByName) {
  isolated([] {
    Net net;
    auto pair = connected(net);
    EXPECT_EQ(::send(pair.peer, "!", 1, MSG_OOB), 1);
    wait_for(pair.pod, POLLPRI);
    auto images = capture_all({pair.pod});
    ASSERT_FALSE(images);
    EXPECT_NE(images.error().what.find("urgent"), std::string::npos);
    const int multipath = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 262);
    if (multipath >= 0) {
      images = capture_all({multipath});
      ASSERT_FALSE(images);
      EXPECT_NE(images.error().what.find("Multipath"), std::string::npos);
    }
    const int zero = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    set_int(zero, SOL_SOCKET, SO_ZEROCOPY, 1);
    images = capture_all({zero});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::refused);
    struct {
      sockaddr_storage address;
      std::uint8_t flags = 0, prefix = 0;
      std::uint16_t length = 3;
      int device = 0;
      std::uint8_t key[80] = {1, 2, 3};
    } md5;
    socklen_t length = 0;
    md5.address = address_of(AF_INET, false, 0, length);
    const int signing = listen_on(AF_INET, true, 82);
    if (::setsockopt(signing, IPPROTO_TCP, TCP_MD5SIG, &md5, sizeof(md5)) == 0) {
      images = capture_all({signing});
      ASSERT_FALSE(images);
      EXPECT_NE(images.error().what.find("MD5"), std::string::npos);
    }
  });
}

TEST(Tcp, OptionsStay) {
  isolated([] {
    Net net;
    const auto pair = connected(net);
    struct Setting {
      int level, name, value;
    };
    const std::vector<Setting> settings = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                                           {SOL_SOCKET, SO_PRIORITY, 3},
                                           {SOL_SOCKET, SO_MARK, 42},
                                           {SOL_SOCKET, SO_RCVLOWAT, 3},
                                           {IPPROTO_IP, IP_TOS, 16},
                                           {IPPROTO_IP, IP_TTL, 33},
                                           {IPPROTO_TCP, TCP_NODELAY, 1},
                                           {IPPROTO_TCP, TCP_KEEPIDLE, 100},
                                           {IPPROTO_TCP, TCP_KEEPINTVL, 11},
                                           {IPPROTO_TCP, TCP_KEEPCNT, 4},
                                           {IPPROTO_TCP, TCP_USER_TIMEOUT, 9000},
                                           {IPPROTO_TCP, TCP_CORK, 1},
                                           {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 7000},
                                           {SOL_SOCKET, SO_RCVBUF, 50000},
                                           {SOL_SOCKET, SO_SNDBUF, 60000},
                                           {SOL_SOCKET, SO_OOBINLINE, 1},
                                           {SOL_SOCKET, SO_REUSEPORT, 1}};
    for (const auto& setting : settings) set_int(pair.pod, setting.level, setting.name, setting.value);
    const struct linger linger { 1, 7 };
    ASSERT_EQ(::setsockopt(pair.pod, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    const timeval patience{1, 250000};
    ASSERT_EQ(::setsockopt(pair.pod, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
    ASSERT_EQ(::setsockopt(pair.pod, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
    ASSERT_EQ(::fchown(pair.pod, 1234, 4321), 0);
    std::vector<int> before;
    for (const auto& setting : settings) before.push_back(get_int(pair.pod, setting.level, setting.name));
    expect_ok(move_all({pair.listener, pair.pod}));
    for (std::size_t i = 0; i < settings.size(); ++i)
      EXPECT_EQ(get_int(pair.pod, settings[i].level, settings[i].name), before[i])
          << settings[i].level << ' ' << settings[i].name;
    EXPECT_EQ(get_int(pair.pod, SOL_SOCKET, 72 /* SO_BUF_LOCK */), 3);
    struct linger linger_after {};
    socklen_t length = sizeof(linger_after);
    ::getsockopt(pair.pod, SOL_SOCKET, SO_LINGER, &linger_after, &length);
    EXPECT_EQ(linger_after.l_linger, 7);
    timeval patience_after{};
    length = sizeof(patience_after);
    ::getsockopt(pair.pod, SOL_SOCKET, SO_RCVTIMEO, &patience_after, &length);
    // Rounded up to the kernel's tick.
    EXPECT_EQ(patience_after.tv_sec, 1);
    EXPECT_GE(patience_after.tv_usec, 250000);
    EXPECT_LE(patience_after.tv_usec, 260000);
    char congestion[16] = {};
    length = sizeof(congestion);
    ::getsockopt(pair.pod, IPPROTO_TCP, TCP_CONGESTION, congestion, &length);
    EXPECT_STREQ(congestion, "reno");
    struct stat status {};
    ::fstat(pair.pod, &status);
    EXPECT_EQ(status.st_uid, 1234u);
    EXPECT_EQ(status.st_gid, 4321u);
  });
}

TEST(Tcp, AThousandConnections) {
  isolated([] {
    Net net;
    constexpr int count = 1000;
    const int listener = listen_on(AF_INET, true, 80, count);
    std::vector<int> fds, peers;
    for (int i = 0; i < count; ++i) {
      peers.push_back(net.at_peer([] { return connect_to(AF_INET, true, 80); }));
      fds.push_back(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
      ASSERT_GE(fds.back(), 0);
    }
    FakeSource source;
    for (const int fd : fds) source.add(fd);
    // Processor time: what the machine does besides doesn't count.
    const auto now = [] {
      timespec time{};
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
      return time.tv_sec * 1'000'000 + time.tv_nsec / 1000;
    };
    const auto elapsed = [&now](long begin) { return now() - begin; };
    for (const auto& each : source.all) ASSERT_TRUE(tcp_kind.preflight(each, source));
    long begin = now();
    std::vector<Bytes> images;
    std::size_t bytes = 0;
    for (const auto& each : source.all) {
      images.push_back(tcp_kind.capture(each, source).value_or(Bytes{}));
      bytes += images.back().size();
    }
    const long captured = elapsed(begin);
    for (const int fd : fds) close_silently(fd);
    FakeDestination destination;
    std::vector<Fd> built;
    begin = now();
    for (const auto& image : images) {
      auto fd = tcp_kind.build(image, destination);
      ASSERT_TRUE(fd) << fd.error().message();
      built.push_back(std::move(*fd));
    }
    const long rebuilt = elapsed(begin);
    begin = now();
    for (std::size_t i = 0; i < built.size(); ++i) ASSERT_TRUE(tcp_kind.open(images[i], built[i].get(), destination));
    const long opened = elapsed(begin);
    std::printf("%zu connections: capture %ld us, build %ld us, open %ld us, %zu bytes each\n", built.size(), captured,
                rebuilt, opened, bytes / images.size());
    for (std::size_t i = 0; i < built.size(); ++i) expect_talk(built[i].get(), peers[i]);
  });
}

}  // namespace
}  // namespace godwit::objects::socket_testing
