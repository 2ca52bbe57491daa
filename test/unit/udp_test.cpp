#include "socket_fixture.hpp"

namespace godwit::objects::socket_testing {
namespace {

sockaddr_in at(const char* ip, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  ::inet_pton(AF_INET, ip, &address.sin_addr);
  return address;
}
sockaddr_in6 at6(const char* ip, int port) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(static_cast<std::uint16_t>(port));
  ::inet_pton(AF_INET6, ip, &address.sin6_addr);
  return address;
}

template <typename Address>
int bound(const Address& address, bool reuse_port = false) {
  const int family = reinterpret_cast<const sockaddr*>(&address)->sa_family;
  const int fd = ::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (reuse_port) set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}
template <typename Address>
void send_to(int fd, const Address& address, const std::string& text) {
  EXPECT_EQ(::sendto(fd, text.data(), text.size(), 0, reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
            static_cast<ssize_t>(text.size()))
      << std::strerror(errno);
}
/// "text from port", or "-" when nothing is there.
std::string next(int fd, bool wait = false) {
  std::string text(70000, '\0');
  sockaddr_storage from{};
  socklen_t length = sizeof(from);
  if (wait) wait_for(fd, POLLIN);
  const ssize_t count =
      ::recvfrom(fd, text.data(), text.size(), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
  if (count < 0) return "-";
  text.resize(static_cast<std::size_t>(count));
  char ip[64] = {};
  if (from.ss_family == AF_INET)
    ::inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in&>(from).sin_addr, ip, sizeof(ip));
  else
    ::inet_ntop(AF_INET6, &reinterpret_cast<sockaddr_in6&>(from).sin6_addr, ip, sizeof(ip));
  return text + " from " + ip + " " + std::to_string(ntohs(reinterpret_cast<sockaddr_in&>(from).sin_port));
}

TEST(Udp, QueueKeepsOrderAndSenders) {
  isolated([] {
    Net net;
    const int pod = bound(at("0.0.0.0", 700));
    set_int(pod, SOL_SOCKET, SO_PEEK_OFF, 3);
    const int one = net.at_peer([] { return bound(at("10.9.0.1", 701)); });
    const int two = net.at_peer([] { return bound(at("10.9.0.1", 702)); });
    const auto to = at("10.9.0.2", 700);
    send_to(one, to, "first");
    send_to(two, to, "second");
    send_to(one, to, "");
    send_to(two, to, std::string(60000, 'x'));
    wait_for(pod, POLLIN);
    expect_ok(move_all({pod}));
    EXPECT_EQ(get_int(pod, SOL_SOCKET, SO_PEEK_OFF), 3);
    send_to(one, to, "later");
    EXPECT_EQ(next(pod), "first from 10.9.0.1 701");
    EXPECT_EQ(next(pod), "second from 10.9.0.1 702");
    EXPECT_EQ(next(pod), " from 10.9.0.1 701");
    EXPECT_EQ(next(pod), std::string(60000, 'x') + " from 10.9.0.1 702");
    EXPECT_EQ(next(pod, true), "later from 10.9.0.1 701");
    EXPECT_EQ(next(pod), "-");
    send_to(pod, at("10.9.0.1", 701), "answer");
    EXPECT_EQ(next(one, true), "answer from 10.9.0.2 700");
  });
}

TEST(Udp, Ipv6AndMappedSenders) {
  isolated([] {
    Net net;
    const int pod = bound(at6("::", 700));
    const int one = net.at_peer([] { return bound(at6("fd09::1", 701)); });
    const int two = net.at_peer([] { return bound(at("10.9.0.1", 702)); });
    send_to(one, at6("fd09::2", 700), "six");
    wait_for(pod, POLLIN);
    send_to(two, at("10.9.0.2", 700), "four");
    expect_ok(move_all({pod}));
    EXPECT_EQ(next(pod), "six from fd09::1 701");
    EXPECT_EQ(next(pod), "four from ::ffff:10.9.0.1 702");
  });
}

TEST(Udp, ConnectedKeepsWhatCameBeforeAndItsPeer) {
  isolated([] {
    Net net;
    const int pod = bound(at("10.9.0.2", 700));
    const int peer = net.at_peer([] { return bound(at("10.9.0.1", 701)); });
    const int other = net.at_peer([] { return bound(at("10.9.0.1", 702)); });
    send_to(other, at("10.9.0.2", 700), "early");
    wait_for(pod, POLLIN);
    const auto to = at("10.9.0.1", 701);
    ASSERT_EQ(::connect(pod, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    send_to(peer, at("10.9.0.2", 700), "from the peer");
    expect_ok(move_all({pod}));
    send_to(other, at("10.9.0.2", 700), "not for it");
    EXPECT_EQ(next(pod), "early from 10.9.0.1 702");
    EXPECT_EQ(next(pod), "from the peer from 10.9.0.1 701");
    EXPECT_EQ(next(pod), "-");
    EXPECT_EQ(::send(pod, "hello", 5, 0), 5);
    EXPECT_EQ(next(peer, true), "hello from 10.9.0.2 700");
  });
}

TEST(Udp, SharedPortKeepsEachQueue) {
  isolated([] {
    Net net;
    const auto address = at("0.0.0.0", 700);
    std::vector<int> group;
    for (int i = 0; i < 4; ++i) group.push_back(bound(address, true));
    const int peer = net.at_peer([] { return bound(at("10.9.0.1", 701)); });
    const int more = net.at_peer([] { return bound(at("10.9.0.1", 999)); });
    for (int i = 0; i < 3; ++i) {
      send_to(peer, at("10.9.0.2", 700), "one" + std::to_string(i));
      send_to(more, at("10.9.0.2", 700), "two" + std::to_string(i));
    }
    std::vector<std::size_t> before;
    const auto images = capture_all(group);
    ASSERT_TRUE(images) << images.error().message();
    for (const auto& image : *images) before.push_back(image.size());
    expect_ok(move_all(group));
    const auto after = capture_all(group);
    ASSERT_TRUE(after);
    for (std::size_t i = 0; i < group.size(); ++i) EXPECT_EQ((*after)[i].size(), before[i]);
    EXPECT_EQ(get_int(group[0], SOL_SOCKET, SO_REUSEPORT), 1);
  });
}

TEST(Udp, UnboundOptionsAndGroups) {
  isolated([] {
    Net net;
    const int unbound = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    set_int(unbound, SOL_SOCKET, SO_BROADCAST, 1);
    set_int(unbound, IPPROTO_IP, IP_MULTICAST_TTL, 9);
    set_int(unbound, IPPROTO_IP, IP_MULTICAST_LOOP, 0);
    set_int(unbound, SOL_SOCKET, SO_RCVBUF, 300000);
    const int member = bound(at("0.0.0.0", 800));
    group_req request{};
    request.gr_interface = 2;
    const auto group = at("239.1.2.3", 0);
    std::memcpy(&request.gr_group, &group, sizeof(group));
    ip_mreqn join{};
    join.imr_multiaddr = group.sin_addr;
    join.imr_address = at("10.9.0.2", 0).sin_addr;
    ASSERT_EQ(::setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof(join)), 0);
    const int rcvbuf = get_int(unbound, SOL_SOCKET, SO_RCVBUF);
    Net::run("ip route add 239.0.0.0/8 dev eth0");
    expect_ok(move_all({unbound, member}));
    EXPECT_EQ(get_int(unbound, SOL_SOCKET, SO_BROADCAST), 1);
    EXPECT_EQ(get_int(unbound, IPPROTO_IP, IP_MULTICAST_TTL), 9);
    EXPECT_EQ(get_int(unbound, IPPROTO_IP, IP_MULTICAST_LOOP), 0);
    EXPECT_EQ(get_int(unbound, SOL_SOCKET, SO_RCVBUF), rcvbuf);
    EXPECT_TRUE(::fcntl(unbound, F_GETFL) & O_NONBLOCK);
    const int peer = net.at_peer([] {
      Net::run("ip route add 239.0.0.0/8 dev eth0");
      return bound(at("10.9.0.1", 701));
    });
    send_to(peer, at("239.1.2.3", 800), "to the group");
    EXPECT_EQ(next(member, true), "to the group from 10.9.0.1 701");
  });
}

TEST(Udp, UnreadErrorsAreBusy) {
  isolated([] {
    Net net;
    const int pod = bound(at("10.9.0.2", 700));
    const auto nobody = at("10.9.0.1", 1);
    ASSERT_EQ(::connect(pod, reinterpret_cast<const sockaddr*>(&nobody), sizeof(nobody)), 0);
    EXPECT_EQ(::send(pod, "x", 1, 0), 1);
    EXPECT_TRUE(wait_for(pod, POLLIN) & POLLERR);
    const auto images = capture_all({pod});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::busy);
  });
}

}  // namespace
}  // namespace godwit::objects::socket_testing
