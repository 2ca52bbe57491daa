#include "pod/network.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "kernel/netlink.hpp"

/// Two nodes with a bridge each, a switch between them, a client on the switch; the pod stands on the first node and
/// can be made to stand on the second as well. All in network namespaces that live on descriptors.
namespace godwit::pod {
namespace {

using kernel::Netlink;
using State = Gate::State;

#define ASSERT_OK(expression)                              \
  do {                                                     \
    auto&& ok_ = (expression);                             \
    ASSERT_TRUE(ok_.has_value()) << ok_.error().message(); \
  } while (false)

template <typename T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message();
    std::abort();
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

void check(bool condition, const char* what) {
  if (condition) return;
  ADD_FAILURE() << what << ": " << std::strerror(errno);
  std::abort();
}

Fd new_netns() {
  Fd ns;
  std::thread([&] {
    check(unshare(CLONE_NEWNET) == 0, "unshare");
    ns.reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    must(must(Netlink::open()).set_up(1, true));
  }).join();
  return ns;
}

void in(const Fd& ns, const std::function<void()>& work) {
  std::thread([&] {
    check(setns(ns.get(), CLONE_NEWNET) == 0, "setns");
    work();
  }).join();
}

int index_of(const std::string& name) {
  return must(must(Netlink::open()).index(name));
}

bool readable(int fd, int milliseconds) {
  pollfd wait{.fd = fd, .events = POLLIN};
  return poll(&wait, 1, milliseconds) == 1;
}

constexpr std::uint16_t port = 7000;
constexpr int patience = 10'000;  // ms
constexpr std::chrono::milliseconds limit{patience};

sockaddr_in address(const char* text) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  inet_pton(AF_INET, text, &to.sin_addr);
  return to;
}

const Network pod_network{.mac = "02:67:0a:42:80:01",
                          .addresses = {"10.66.128.1/16", "fd66::8001/64"},
                          .gateway4 = "10.66.0.1",
                          .gateway6 = "fd66::1"};

class World : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    in(wire, [] {
      const auto netlink = must(Netlink::open());
      must(netlink.create_bridge("switch"));
      must(netlink.set_up(index_of("switch"), true));
    });
    for (auto* node : {&a, &b}) {
      plug(*node, node == &a ? "a" : "b", "uplink");
      in(*node, [] {
        const auto netlink = must(Netlink::open());
        must(netlink.create_bridge("br0"));
        must(netlink.set_master(index_of("uplink"), index_of("br0")));
        must(netlink.set_up(index_of("uplink"), true));
        must(netlink.set_up(index_of("br0"), true));
      });
    }
    plug(client, "client", "eth0");
    in(client, [] {
      const auto netlink = must(Netlink::open());
      must(netlink.add_address(index_of("eth0"), must(kernel::parse_prefix("10.66.0.9/16"))));
      must(netlink.add_address(index_of("eth0"), must(kernel::parse_prefix("fd66::9/64"))));
      must(netlink.set_up(index_of("eth0"), true));
    });
    for (const auto* name : {"a", "b", "client"})
      in(wire, [&] { must(must(Netlink::open()).wait_until_it_carries(index_of(name), limit)); });
    for (const auto* node : {&a, &b}) {
      in(*node, [&] { must(must(Netlink::open()).wait_until_it_carries(index_of("uplink"), limit)); });
      in(*node, [&] { must(must(Netlink::open()).wait_until_it_carries(index_of("br0"), limit)); });
    }
    in(client, [&] { must(must(Netlink::open()).wait_until_it_carries(index_of("eth0"), limit)); });
    in(a, [&] { first = must(Port::create("br0", "pod-1", pod_network, pod.get(), State::open)); });
    must(first->announce());
  }

  void plug(const Fd& ns, const std::string& name, const std::string& inside) {
    in(wire, [&] {
      const auto netlink = must(Netlink::open());
      must(netlink.create_veth({.name = name, .peer_name = inside, .peer_netns = ns.get()}));
      must(netlink.no_automatic_address(index_of(name)));
      must(netlink.set_master(index_of(name), index_of("switch")));
      must(netlink.set_up(index_of(name), true));
    });
    in(ns, [&] { must(must(Netlink::open()).no_automatic_address(index_of(inside))); });
  }

  void arrive(State state) {
    in(b, [&] {
      second = must(Port::create("br0", "pod-1", pod_network, pod_again.get(), state));
      must(second->connect());
    });
  }

  /// What the source still holds, to the pod where it is now. Frames for a group come there by themselves.
  std::size_t pass_on() {
    std::size_t frames = 0;
    for (;;) {
      const Bytes frame = must(first->gate().next_held());
      if (frame.empty()) return frames;
      if (Gate::for_a_group(frame)) continue;
      must(second->gate().deliver(frame));
      ++frames;
    }
  }

  static Fd listen_in(const Fd& ns, int type) {
    Fd server;
    in(ns, [&] {
      server.reset(socket(AF_INET, type | SOCK_CLOEXEC, 0));
      const int on = 1, big = 16 << 20;
      setsockopt(server.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      setsockopt(server.get(), SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
      const auto here = address("0.0.0.0");
      check(bind(server.get(), reinterpret_cast<const sockaddr*>(&here), sizeof here) == 0, "bind");
      if (type == SOCK_STREAM) check(listen(server.get(), 8) == 0, "listen");
    });
    return server;
  }

  /// Connected from the client's machine to the pod. The link comes up by itself within moments.
  Fd connect_to_pod(int type) {
    Fd socket_here;
    in(client, [&] {
      socket_here.reset(socket(AF_INET, type | SOCK_CLOEXEC, 0));
      const auto to = address("10.66.128.1");
      check(connect(socket_here.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0, "connect");
      const int on = 1;
      if (type == SOCK_STREAM) setsockopt(socket_here.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    });
    return socket_here;
  }

  Fd wire = new_netns(), a = new_netns(), b = new_netns(), client = new_netns(), pod = new_netns(),
     pod_again = new_netns();
  std::optional<Port> first, second;
};

int retransmissions(const Fd& socket) {
  tcp_info info{};
  socklen_t size = sizeof info;
  check(getsockopt(socket.get(), IPPROTO_TCP, TCP_INFO, &info, &size) == 0, "TCP_INFO");
  return static_cast<int>(info.tcpi_total_retrans);
}

/// Sends a number and waits for the same number, again and again: what one lost frame would cost 200 ms.
class Questioner {
 public:
  explicit Questioner(const Fd& socket) : socket_(socket.get()), thread_([this] { run(); }) {}
  ~Questioner() { stop(); }
  void stop() {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
  }
  void wait_for_more(std::uint64_t count) {
    const std::uint64_t goal = answered_ + count;
    while (answered_ < goal && !wrong_) std::this_thread::yield();
  }
  [[nodiscard]] bool wrong() const { return wrong_; }

 private:
  void run() {
    for (std::uint64_t number = 1; !stopped_ && !wrong_; ++number) {
      std::uint64_t answer = 0;
      if (send(socket_, &number, sizeof number, MSG_NOSIGNAL) != sizeof number || !readable(socket_, patience) ||
          recv(socket_, &answer, sizeof answer, MSG_WAITALL) != sizeof answer || answer != number)
        wrong_ = true;
      else
        answered_ = number;
    }
  }

  int socket_;
  std::atomic<bool> stopped_ = false, wrong_ = false;
  std::atomic<std::uint64_t> answered_ = 0;
  std::thread thread_;
};

/// Answers with what it got, until it is told to stop or the peer has closed.
class Echo {
 public:
  explicit Echo(const Fd& socket) : socket_(socket.get()), thread_([this] { run(); }) {}
  ~Echo() { stop(); }
  void stop() {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run() {
    std::uint8_t buffer[4096];
    while (!stopped_) {
      if (!readable(socket_, 5)) continue;
      const ssize_t got = recv(socket_, buffer, sizeof buffer, 0);
      if (got <= 0) return;
      if (send(socket_, buffer, static_cast<std::size_t>(got), MSG_NOSIGNAL) != got) return;
    }
  }

  int socket_;
  std::atomic<bool> stopped_ = false;
  std::thread thread_;
};

TEST_F(World, HoldAndReleaseLosesAndDelaysNothing) {
  const Fd listener = listen_in(pod, SOCK_STREAM);
  const Fd asking = connect_to_pod(SOCK_STREAM);
  const Fd answering(accept(listener.get(), nullptr, nullptr));
  Echo echo(answering);
  Questioner questioner(asking);
  Gate& gate = first->gate();
  for (int round = 0; round < 50; ++round) {
    questioner.wait_for_more(20);
    ASSERT_OK(gate.set(State::pause));
    // The next question is here, so the answer to the one before has left.
    ASSERT_TRUE(readable(gate.held_fd(), patience));
    ASSERT_OK(gate.set(State::hold));
    ASSERT_OK(gate.set(State::pause));
    EXPECT_GE(must(gate.release()), 1U);
  }
  questioner.wait_for_more(20);
  questioner.stop();
  EXPECT_FALSE(questioner.wrong());
  EXPECT_EQ(retransmissions(asking), 0);
  EXPECT_EQ(retransmissions(answering), 0);
}

/// The state of an idle connection, enough to go on with it elsewhere (objects/ does this in earnest).
struct Connection {
  std::uint32_t sent = 0, received = 0, timestamp = 0;
  tcp_repair_window window{};
  tcp_info info{};
  sockaddr_in local{}, remote{};
};

template <typename T>
T option(int fd, int name) {
  T value{};
  socklen_t size = sizeof value;
  check(getsockopt(fd, IPPROTO_TCP, name, &value, &size) == 0, "getsockopt");
  return value;
}

template <typename T>
void set_option(int fd, int name, const T& value) {
  check(setsockopt(fd, IPPROTO_TCP, name, &value, sizeof value) == 0, "setsockopt");
}

Connection take(const Fd& socket) {
  Connection c;
  const int fd = socket.get();
  set_option(fd, TCP_REPAIR, 1);
  set_option(fd, TCP_REPAIR_QUEUE, 2);
  c.sent = option<std::uint32_t>(fd, TCP_QUEUE_SEQ);
  set_option(fd, TCP_REPAIR_QUEUE, 1);
  c.received = option<std::uint32_t>(fd, TCP_QUEUE_SEQ);
  c.timestamp = option<std::uint32_t>(fd, TCP_TIMESTAMP);
  c.window = option<tcp_repair_window>(fd, TCP_REPAIR_WINDOW);
  c.info = option<tcp_info>(fd, TCP_INFO);
  socklen_t size = sizeof c.local;
  getsockname(fd, reinterpret_cast<sockaddr*>(&c.local), &size);
  getpeername(fd, reinterpret_cast<sockaddr*>(&c.remote), &size);
  return c;
}

Fd give(const Fd& ns, const Connection& c) {
  Fd socket_there;
  in(ns, [&] {
    socket_there.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int fd = socket_there.get();
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    set_option(fd, TCP_REPAIR, 1);
    set_option(fd, TCP_REPAIR_QUEUE, 2);
    set_option(fd, TCP_QUEUE_SEQ, c.sent);
    set_option(fd, TCP_REPAIR_QUEUE, 1);
    set_option(fd, TCP_QUEUE_SEQ, c.received);
    check(bind(fd, reinterpret_cast<const sockaddr*>(&c.local), sizeof c.local) == 0, "bind");
    check(connect(fd, reinterpret_cast<const sockaddr*>(&c.remote), sizeof c.remote) == 0, "connect");
    std::vector<tcp_repair_opt> options = {{TCPOPT_MAXSEG, 1448}, {TCPOPT_WINDOW, 0}};
    options[1].opt_val = c.info.tcpi_snd_wscale | static_cast<std::uint32_t>(c.info.tcpi_rcv_wscale) << 16;
    if ((c.info.tcpi_options & TCPI_OPT_SACK) != 0) options.push_back({TCPOPT_SACK_PERMITTED, 0});
    if ((c.info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0) options.push_back({TCPOPT_TIMESTAMP, 0});
    check(setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                     static_cast<socklen_t>(options.size() * sizeof options[0])) == 0,
          "TCP_REPAIR_OPTIONS");
    set_option(fd, TCP_TIMESTAMP, c.timestamp);
    set_option(fd, TCP_REPAIR_WINDOW, c.window);
  });
  return socket_there;
}

TEST_F(World, ConnectionGoesOnBehindAnotherNode) {
  const Fd listener = listen_in(pod, SOCK_STREAM);
  const Fd asking = connect_to_pod(SOCK_STREAM);
  const Fd answering(accept(listener.get(), nullptr, nullptr));
  std::optional<Echo> echo;
  echo.emplace(answering);
  Questioner questioner(asking);
  arrive(State::shut);
  questioner.wait_for_more(100);

  ASSERT_OK(first->gate().set(State::pause));
  ASSERT_TRUE(readable(first->gate().held_fd(), patience));
  echo.reset();
  ASSERT_OK(first->gate().set(State::hold));
  const Fd arrived = give(pod_again, take(answering));
  ASSERT_OK(second->gate().set(State::pause));
  set_option(arrived.get(), TCP_REPAIR, -1);  // no window probe
  echo.emplace(arrived);
  ASSERT_OK(second->announce());
  EXPECT_GE(pass_on(), 1U);
  ASSERT_OK(second->gate().release());

  questioner.wait_for_more(100);
  questioner.stop();
  EXPECT_FALSE(questioner.wrong());
  EXPECT_EQ(retransmissions(asking), 0);
  EXPECT_EQ(retransmissions(arrived), 0);
  EXPECT_EQ(pass_on(), 0U);
}

TEST_F(World, NeighboursTravel) {
  const Fd sending = connect_to_pod(SOCK_DGRAM);
  const Fd receiving = listen_in(pod, SOCK_DGRAM);
  // The client's question for the pod's address tells the pod who asks.
  check(send(sending.get(), "x", 1, 0) == 1, "send");
  ASSERT_TRUE(readable(receiving.get(), patience));
  const auto known = must(first->neighbours());
  const auto client_there = [](const std::vector<Neighbour>& all) {
    return std::ranges::count(all, "10.66.0.9", &Neighbour::address);
  };
  ASSERT_EQ(client_there(known), 1);
  arrive(State::shut);
  EXPECT_EQ(client_there(must(second->neighbours())), 0);
  ASSERT_OK(second->add_neighbours(known));
  ASSERT_OK(second->add_neighbours(known));
  const auto arrived = must(second->neighbours());
  ASSERT_EQ(client_there(arrived), 1);
  const auto mac_in = [](const std::vector<Neighbour>& all) {
    return std::ranges::find(all, "10.66.0.9", &Neighbour::address)->mac;
  };
  EXPECT_EQ(mac_in(arrived), mac_in(known));
  EXPECT_FALSE(second->add_neighbours({{"nonsense", "02:67:0a:42:80:01"}}).has_value());
  EXPECT_FALSE(second->add_neighbours(std::vector<Neighbour>(1025, {"10.66.0.9", "02:67:0a:42:80:01"})).has_value());
}

TEST_F(World, EveryDatagramArrivesOnce) {
  const Fd before = listen_in(pod, SOCK_DGRAM);
  const Fd after = listen_in(pod_again, SOCK_DGRAM);
  const Fd sending = connect_to_pod(SOCK_DGRAM);
  arrive(State::shut);
  std::atomic<std::uint32_t> sent = 0;
  std::atomic<bool> stopped = false;
  std::thread sender([&] {
    while (!stopped && sent < 1'000'000) {
      const std::uint32_t number = sent;
      check(send(sending.get(), &number, sizeof number, 0) == sizeof number, "send");
      ++sent;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  });
  const auto wait_for_more = [&](std::uint32_t count) {
    const std::uint32_t goal = sent + count;
    while (sent < goal) std::this_thread::yield();
  };
  wait_for_more(200);
  ASSERT_OK(first->gate().set(State::hold));
  wait_for_more(200);
  ASSERT_OK(second->gate().set(State::pause));
  ASSERT_OK(second->announce());
  EXPECT_GE(pass_on(), 100U);
  ASSERT_OK(second->gate().release());
  wait_for_more(200);
  stopped = true;
  sender.join();
  pass_on();

  std::multiset<std::uint32_t> seen;
  std::size_t here = 0;
  for (const auto* socket : {&before, &after}) {
    std::uint32_t number = 0;
    here = 0;
    while (readable(socket->get(), 50) && recv(socket->get(), &number, sizeof number, MSG_DONTWAIT) == sizeof number) {
      seen.insert(number);
      ++here;
    }
    EXPECT_GE(here, 100U);
  }
  EXPECT_EQ(seen.size(), sent);
  EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), sent);
}

TEST_F(World, SuperFramesSurvive) {
  const Fd listener = listen_in(pod, SOCK_STREAM);
  const Fd sending = connect_to_pod(SOCK_STREAM);
  const Fd receiving(accept(listener.get(), nullptr, nullptr));
  constexpr std::size_t total = 96 * MiB;
  const auto byte_at = [](std::size_t i) { return static_cast<std::uint8_t>((i * 2654435761U) >> 13); };
  std::atomic<std::size_t> got = 0;
  std::atomic<bool> right = true, done = false;
  std::thread sender([&] {
    Bytes block(MiB);
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = byte_at(i);
    for (std::size_t at = 0; at < total; at += block.size())
      if (send(sending.get(), block.data(), block.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(block.size())) return;
  });
  std::thread receiver([&] {
    Bytes block(64 * KiB);
    while (got < total) {
      if (!readable(receiving.get(), patience)) break;
      const ssize_t n = recv(receiving.get(), block.data(), block.size(), 0);
      if (n <= 0) break;
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
        if (block[i] != byte_at((got + i) % MiB)) right = false;
      got += static_cast<std::size_t>(n);
    }
    done = true;
  });
  std::size_t largest = 0;
  for (int round = 1; round <= 8 && !done; ++round) {
    while (got < total / 10 * static_cast<std::size_t>(round) && !done) std::this_thread::yield();
    ASSERT_OK(first->gate().set(State::pause));
    if (!readable(first->gate().held_fd(), patience)) break;
    const Bytes frame = must(first->gate().next_held());
    largest = std::max(largest, frame.size());
    ASSERT_OK(first->gate().deliver(frame));
    ASSERT_OK(first->gate().release());
  }
  sender.join();
  receiver.join();
  EXPECT_EQ(got, total);
  EXPECT_TRUE(right);
  EXPECT_GT(largest, 2000U) << "no segmentation offload: the test has shown nothing";
}

TEST_F(World, AnArrivingPortIsSilentUntilItIsOpened) {
  Fd sniffer;
  in(wire, [&] {
    sniffer.reset(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
    sockaddr_ll at{};
    at.sll_family = AF_PACKET;
    at.sll_protocol = htons(ETH_P_ALL);
    at.sll_ifindex = index_of("b");
    check(bind(sniffer.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) == 0, "bind");
  });
  arrive(State::shut);
  const auto speak = [&] {
    ASSERT_OK(second->announce());
    in(pod_again, [] {
      const Fd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      auto everybody = address("10.66.255.255");
      const int on = 1;
      setsockopt(udp.get(), SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
      check(sendto(udp.get(), "x", 1, 0, reinterpret_cast<sockaddr*>(&everybody), sizeof everybody) == 1, "sendto");
    });
  };
  speak();
  ASSERT_OK(second->gate().set(State::hold));
  speak();
  ASSERT_OK(second->gate().set(State::pause));
  speak();
  const auto mac = must(kernel::parse_mac(pod_network.mac));
  std::vector<std::uint16_t> types;
  while (readable(sniffer.get(), patience)) {
    std::uint8_t frame[2048];
    sockaddr_ll from{};
    socklen_t size = sizeof from;
    const ssize_t n = recvfrom(sniffer.get(), frame, sizeof frame, 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (n < 42 || std::memcmp(frame + 6, mac.data(), 6) != 0 || from.sll_pkttype == PACKET_OUTGOING) continue;
    types.push_back(static_cast<std::uint16_t>(frame[12] << 8 | frame[13]));
    if (types.back() == ETHERTYPE_IP) break;
    // Once it is open the pod's kernel may repeat its multicast reports (hop-by-hop header, not bare ICMPv6).
    if (types.back() == ETHERTYPE_IPV6 && frame[20] != IPPROTO_ICMPV6) types.pop_back();
  }
  // Of the three times it spoke only the last is heard: two ARP forms, advertisements for the address and for the
  // link-local one, the datagram.
  EXPECT_EQ(types,
            (std::vector<std::uint16_t>{ETHERTYPE_ARP, ETHERTYPE_ARP, ETHERTYPE_IPV6, ETHERTYPE_IPV6, ETHERTYPE_IP}));
}

TEST_F(World, AdvertisementsAreValid) {
  Fd listener;
  in(client, [&] { listener.reset(socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6)); });
  ASSERT_OK(first->announce());
  // The kernel passes on only what has the right checksum.
  std::set<std::string> announced;
  while (announced.size() < 2 && readable(listener.get(), patience)) {
    std::uint8_t message[512];
    if (recv(listener.get(), message, sizeof message, 0) < 24 || message[0] != 136) continue;
    char text[INET6_ADDRSTRLEN];
    announced.insert(inet_ntop(AF_INET6, message + 8, text, sizeof text));
  }
  EXPECT_EQ(announced, (std::set<std::string>{"fd66::8001", "fe80::67:aff:fe42:8001"}));
}

TEST_F(World, TheGateOutlivesItsFirstHolder) {
  const Fd receiving = listen_in(pod, SOCK_DGRAM);
  const Fd sending = connect_to_pod(SOCK_DGRAM);
  const auto ask = [&](std::uint8_t number) { check(send(sending.get(), &number, 1, 0) == 1, "send"); };
  ask(1);
  ASSERT_TRUE(readable(receiving.get(), patience));
  ASSERT_OK(first->gate().set(State::hold));
  std::map<std::string, Fd> left;
  for (const auto& [name, fd] : first->gate().descriptors()) left[name] = Fd(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  first.reset();

  in(a, [&] { first = must(Port::adopt("pod-1", pod_network, pod.get(), std::move(left))); });
  EXPECT_EQ(must(first->gate().state()), State::hold);
  ask(2);
  ASSERT_TRUE(readable(first->gate().held_fd(), patience));
  EXPECT_GE(must(first->gate().release()), 1U);
  ask(3);
  std::uint8_t number = 0;
  for (std::uint8_t expected = 1; expected <= 3; ++expected) {
    ASSERT_TRUE(readable(receiving.get(), patience));
    ASSERT_EQ(recv(receiving.get(), &number, 1, 0), 1);
    EXPECT_EQ(number, expected);
  }

  // With its last holder the gate is gone, and the pod's network is as without.
  ASSERT_OK(first->gate().set(State::shut));
  first.reset();
  ask(4);
  ASSERT_TRUE(readable(receiving.get(), patience));
  ASSERT_EQ(recv(receiving.get(), &number, 1, 0), 1);
  EXPECT_EQ(number, 4);
}

TEST_F(World, WhoArrivesIsSilentWhateverBecomesOfItsGate) {
  const Fd receiving = listen_in(pod_again, SOCK_DGRAM);
  ASSERT_OK(first->gate().set(State::shut));
  in(b, [&] { second = must(Port::create("br0", "pod-1", pod_network, pod_again.get(), State::shut)); });
  second.reset();  // and the gate's programs with it
  const Fd sending = connect_to_pod(SOCK_DGRAM);
  check(send(sending.get(), "x", 1, 0) == 1, "send");
  EXPECT_FALSE(readable(receiving.get(), 300));

  in(b, [&] {
    second = must(Port::adopt("pod-1", pod_network, pod_again.get()));
    ASSERT_OK(second->connect());
  });
  ASSERT_OK(second->announce());
  check(send(sending.get(), "x", 1, 0) == 1, "send");
  EXPECT_TRUE(readable(receiving.get(), patience));
}

TEST_F(World, RemovingTwiceIsNoError) {
  in(a, [&] {
    ASSERT_OK(first->remove());
    ASSERT_OK(first->remove());
    EXPECT_FALSE(must(Netlink::open()).index(Port::device_for("pod-1")).has_value());
  });
}

TEST(AddressPlan, CandidatesAreInThePoolAndRepeatable) {
  const AddressPlan plan{.subnet4 = "10.66.0.0/16", .subnet6 = "fd66::/64", .gateway4 = "10.66.0.1"};
  const Network one = must(candidate_network(plan, "id-1", 0));
  EXPECT_EQ(one.addresses, must(candidate_network(plan, "id-1", 0)).addresses);
  EXPECT_EQ(one.addresses.size(), 2U);
  EXPECT_EQ(one.gateway4, "10.66.0.1");
  EXPECT_NE(one.addresses, must(candidate_network(plan, "id-2", 0)).addresses);
  EXPECT_NE(one.mac, must(candidate_network(plan, "id-1", 1)).mac);

  const AddressPlan small{.subnet4 = "10.66.0.0/24", .pool4 = "10.66.0.248/29", .gateway4 = "10.66.0.254"};
  std::set<std::string> all;
  for (std::uint32_t attempt = 0; attempt < 8; ++attempt)
    all.insert(must(candidate_network(small, "id", attempt)).addresses.front());
  EXPECT_EQ(all, (std::set<std::string>{"10.66.0.248/24", "10.66.0.249/24", "10.66.0.250/24", "10.66.0.251/24",
                                        "10.66.0.252/24", "10.66.0.253/24"}));
  EXPECT_FALSE(candidate_network({.subnet4 = "10.66.0.0/24", .pool4 = "10.67.0.0/25"}, "id", 0).has_value());
  EXPECT_FALSE(candidate_network({.subnet4 = "nonsense"}, "id", 0).has_value());
}

TEST(Prefix, ReadsAndRefuses) {
  EXPECT_EQ(must(kernel::parse_prefix("10.66.0.21/16")).to_string(), "10.66.0.21/16");
  EXPECT_EQ(must(kernel::parse_prefix("fd66::21")).to_string(), "fd66::21/128");
  for (const char* wrong : {"", "10.66.0.21/33", "10.66.0.21/", "10.66.0.21/1x", "10.66.0/8", "fd66::/129", "x"})
    EXPECT_FALSE(kernel::parse_prefix(wrong).has_value()) << wrong;
  EXPECT_FALSE(kernel::parse_mac("02:67:0a:42:80").has_value());
  EXPECT_FALSE(kernel::parse_mac("02:67:0a:42:80:01:02").has_value());
}

}  // namespace
}  // namespace godwit::pod
