#include <fcntl.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <array>
#include <cstring>

#include "objects/injection.hpp"
#include "objects/kinds.hpp"
#include "objects/multicast.hpp"
#include "objects/typed.hpp"

/// UDP sockets. What is queued is peeked with its senders' addresses and comes in again at the destination, before
/// anything else can: as packets from these senders that the pod's own stack takes in.
namespace godwit::objects {
namespace udp {
namespace {

constexpr std::size_t datagram_limit = 64 * KiB;
constexpr std::size_t queue_limit = 64 * MiB;
constexpr int udp_gro = 104;

struct Datagram {
  InetAddress from, to;
  Bytes payload;
  MSGPACK_DEFINE_MAP(from, to, payload)
};

struct State {
  int family = 0;
  InetAddress local;   ///< port 0: not bound
  InetAddress remote;  ///< port 0: not connected
  bool receive_shut = false, send_shut = false;
  std::vector<Datagram> queue;
  std::vector<Membership> groups;
  SocketOptions options;
  MSGPACK_DEFINE_MAP(family, local, remote, receive_shut, send_shut, queue, groups, options)
};

bool matches(const Descriptor& descriptor) {
  const auto is = socket_class(descriptor);
  return (is.domain == AF_INET || is.domain == AF_INET6) && is.type == SOCK_DGRAM && is.protocol == IPPROTO_UDP;
}

Result<void> preflight(const Descriptor& descriptor, Source&) {
  if (int_option(descriptor.fd, IPPROTO_UDP, UDP_ENCAP) != 0)
    return fail(ErrorKind::refused, "{}: a UDP socket that carries a tunnel (UDP_ENCAP) can't move",
                describe(descriptor));
  return check_socket_options(descriptor);
}

bool is_multicast(const SocketAddress& address) {
  if (address.storage.ss_family == AF_INET)
    return IN_MULTICAST(ntohl(reinterpret_cast<const sockaddr_in&>(address.storage).sin_addr.s_addr));
  return IN6_IS_ADDR_MULTICAST(&reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_addr);
}

/// Which address of ours a datagram came to, and into how large parts it is to be cut again (UDP_GRO joins them).
struct Arrival {
  SocketAddress to;
  std::size_t part = 0;
};

Arrival arrival_of(msghdr& message, const SocketAddress& bound) {
  Arrival arrival{.to = bound};
  for (auto* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(control), sizeof(info));
      // What else it tells is only known of what came after the option had been set.
      if (bound.storage.ss_family == AF_INET)
        reinterpret_cast<sockaddr_in&>(arrival.to.storage).sin_addr = info.ipi_addr;
    } else if (control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(control), sizeof(info));
      auto& to = reinterpret_cast<sockaddr_in6&>(arrival.to.storage);
      to.sin6_addr = info.ipi6_addr;
      if (IN6_IS_ADDR_LINKLOCAL(&to.sin6_addr)) to.sin6_scope_id = info.ipi6_ifindex;
    } else if (control->cmsg_level == IPPROTO_UDP && control->cmsg_type == udp_gro) {
      int size = 0;
      std::memcpy(&size, CMSG_DATA(control), sizeof(size));
      arrival.part = static_cast<std::size_t>(size);
    }
  }
  return arrival;
}

Result<std::vector<Datagram>> peek_queue(const Descriptor& descriptor, const SocketAddress& bound) {
  std::vector<Datagram> queue;
  std::vector<std::uint8_t> buffer(datagram_limit);
  std::size_t total = 0;
  for (;;) {
    SocketAddress from;
    alignas(cmsghdr) std::array<char, 512> control{};
    iovec part{buffer.data(), buffer.size()};
    msghdr message{.msg_name = from.get(),
                   .msg_namelen = sizeof(from.storage),
                   .msg_iov = &part,
                   .msg_iovlen = 1,
                   .msg_control = control.data(),
                   .msg_controllen = control.size()};
    const ssize_t count = ::recvmsg(descriptor.fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return queue;
    if (count < 0) return fail_errno("{}: peek a datagram", describe(descriptor));
    const auto size = static_cast<std::size_t>(count);
    total += size;
    if (size > buffer.size() || total > queue_limit)
      return fail(ErrorKind::refused, "{}: {} bytes of queued datagrams are over the limit", describe(descriptor),
                  total);
    from.length = message.msg_namelen;
    const auto arrival = arrival_of(message, bound);
    if (is_multicast(arrival.to))
      return fail(ErrorKind::busy, "{}: a multicast datagram is unread", describe(descriptor));
    const std::size_t step = arrival.part != 0 ? arrival.part : std::max<std::size_t>(size, 1);
    std::size_t at = 0;
    do {
      const std::size_t length = std::min(step, size - at);
      queue.push_back({inet_address(from), inet_address(arrival.to),
                       Bytes(buffer.begin() + static_cast<long>(at), buffer.begin() + static_cast<long>(at + length))});
      at += length;
    } while (at < size);
  }
}

/// Peeking with an offset goes from datagram to datagram. Addresses are asked for meanwhile, and all is put back.
/// (An empty datagram is shown once: when a capture is given up and begun again, it is missed.)
Result<std::vector<Datagram>> read_queue(const Descriptor& descriptor, const SocketAddress& bound, int events) {
  if ((events & POLLIN) == 0) return std::vector<Datagram>{};
  const int fd = descriptor.fd;
  const bool v6 = bound.storage.ss_family == AF_INET6;
  const int level = v6 ? IPPROTO_IPV6 : IPPROTO_IP, option = v6 ? IPV6_RECVPKTINFO : IP_PKTINFO;
  const int offset = int_option(fd, SOL_SOCKET, SO_PEEK_OFF, -1);
  const int information = int_option(fd, level, option);
  TRY(set_int_option(fd, level, option, 1));
  TRY(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
  auto queue = peek_queue(descriptor, bound);
  TRY(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, offset));
  TRY(set_int_option(fd, level, option, information));
  return queue;
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  const int fd = descriptor.fd;
  State state;
  const auto local = TRY(local_address(fd));
  state.family = local.storage.ss_family;
  state.local = inet_address(local);
  if (const auto peer = peer_address(fd)) state.remote = inet_address(*peer);
  state.options = TRY(read_socket_options(
      descriptor, option_udp | static_cast<unsigned>(state.family == AF_INET6 ? option_ipv6 : option_ipv4)));
  pollfd entry{.fd = fd, .events = POLLIN | POLLRDHUP, .revents = 0};
  ::poll(&entry, 1, 0);
  if (entry.revents & POLLERR)
    return fail(ErrorKind::busy, "{}: an error or a time stamp is unread", describe(descriptor));
  int unsent = 0;
  if (state.options.value("UDP_CORK") != 0 && ::ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent != 0)
    return fail(ErrorKind::busy, "{}: a corked datagram is not complete", describe(descriptor));
  state.receive_shut = entry.revents & POLLRDHUP;
  state.send_shut = entry.revents & POLLHUP;
  state.queue = TRY(read_queue(descriptor, local, entry.revents));
  state.groups = TRY(read_memberships(descriptor, state.family, source));
  return state;
}

Result<unsigned> queued_memory(int fd) {
  std::array<std::uint32_t, SK_MEMINFO_VARS> memory{};
  socklen_t length = sizeof(memory);
  if (::getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory.data(), &length) != 0) return fail_errno("SO_MEMINFO");
  return memory[SK_MEMINFO_RMEM_ALLOC];
}

/// Loopback delivers in the sender's own softirq, unless that has been put off to a thread: then it takes a moment.
Result<void> await_arrival(int fd, unsigned before) {
  for (int round = 0; round < 1'000; ++round) {
    if (TRY(queued_memory(fd)) > before) return {};
    ::poll(nullptr, 0, round < 100 ? 0 : 1);
  }
  return fail(ErrorKind::failed, "a datagram that was queued does not come in again");
}

Result<void> inject(const SocketAddress& from, const SocketAddress& to, BytesView payload, Destination& destination) {
  const auto wire_from = on_wire(from);
  auto wire_to = on_wire(to);
  auto* injector = TRY(packet_injector(destination, wire_from.storage.ss_family));
  auto sent = injector->udp(wire_from.get(), wire_to.get(), payload);
  // A broadcast address: only one that is ours alone will do, and the socket listens to all.
  if (!sent && sent.error().code == EACCES && wire_to.storage.ss_family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(wire_to.storage).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sent = injector->udp(wire_from.get(), wire_to.get(), payload);
  }
  return sent;
}

Result<void> refill(int fd, const State& state, Destination& destination) {
  if (state.queue.empty()) return {};
  std::size_t total = 0;
  for (const auto& datagram : state.queue) total += datagram.payload.size() + KiB;
  TRY(ensure_receive_buffer(fd, total));
  // Where several sockets have the port, a datagram goes to the one that is connected to its sender.
  const bool shared = state.options.value("SO_REUSEPORT") != 0 || state.options.value("SO_REUSEADDR") != 0;
  for (const auto& datagram : state.queue) {
    const auto from = TRY(socket_address(state.family, datagram.from));
    const auto to = TRY(socket_address(state.family, datagram.to));
    if (shared && ::connect(fd, from.get(), from.length) != 0)
      return fail_errno("connect to the sender {} of a datagram", describe(datagram.from));
    const auto before = TRY(queued_memory(fd));
    TRY(inject(from, to, datagram.payload, destination));
    TRY(await_arrival(fd, before));
  }
  const sockaddr nobody{.sa_family = AF_UNSPEC, .sa_data = {}};
  if (shared && ::connect(fd, &nobody, sizeof(nobody)) != 0) return fail_errno("disconnect a UDP socket");
  return {};
}

Result<Fd> build(const State& state, Destination& destination) {
  if (state.family != AF_INET && state.family != AF_INET6)
    return fail(ErrorKind::invalid, "a UDP socket of family {}", state.family);
  Fd socket(::socket(state.family, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP));
  if (!socket) return fail_errno("make a UDP socket");
  const int fd = socket.get();
  const SocketClass is{state.family, SOCK_DGRAM, IPPROTO_UDP};
  TRY(write_socket_options(fd, is, state.options, OptionStage::early, destination));
  if (state.options.value("SO_REUSEADDR") != 0) TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  if (state.local.port != 0) {
    const auto local = TRY(socket_address(state.family, state.local));
    if (::bind(fd, local.get(), local.length) != 0) return fail_errno("bind to {}", describe(state.local));
  }
  TRY(join_groups(fd, state.groups));
  TRY(refill(fd, state, destination));
  if (state.remote.port != 0) {
    const auto remote = TRY(socket_address(state.family, state.remote));
    if (::connect(fd, remote.get(), remote.length) != 0) return fail_errno("connect to {}", describe(state.remote));
    if (state.receive_shut && ::shutdown(fd, SHUT_RD) != 0) return fail_errno("shut the receiving side");
    if (state.send_shut && ::shutdown(fd, SHUT_WR) != 0) return fail_errno("shut the sending side");
  }
  TRY(write_socket_options(fd, is, state.options, OptionStage::late, destination));
  return socket;
}

}  // namespace
}  // namespace udp

const Kind udp_kind{.name = "udp",
                    .matches = udp::matches,
                    .preflight = udp::preflight,
                    .capture = captures<udp::State, udp::capture>,
                    .build = builds<udp::State, udp::build>,
                    .attach = nothing_to_attach,
                    .open = nothing_to_open};

}  // namespace godwit::objects
