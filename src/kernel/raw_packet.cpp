#include "kernel/raw_packet.hpp"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/uio.h>

#include <array>
#include <cstring>

namespace godwit::kernel {
namespace {

/// The ones' complement sum of RFC 1071, over parts that each but the last have an even length.
class Checksum {
 public:
  void add(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    for (std::size_t at = 0; at + 1 < size; at += 2) sum_ += bytes[at] << 8 | bytes[at + 1];
    if (size % 2) sum_ += bytes[size - 1] << 8;
  }
  void add_number(std::uint32_t number) { sum_ += (number >> 16) + (number & 0xffff); }
  [[nodiscard]] std::uint16_t result() const {
    std::uint64_t sum = sum_;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return htons(static_cast<std::uint16_t>(~sum));
  }

 private:
  std::uint64_t sum_ = 0;
};

std::uint16_t port_of(const sockaddr* address) {
  return address->sa_family == AF_INET ? reinterpret_cast<const sockaddr_in*>(address)->sin_port
                                       : reinterpret_cast<const sockaddr_in6*>(address)->sin6_port;
}

void add_address(Checksum& sum, const sockaddr* address) {
  if (address->sa_family == AF_INET)
    sum.add(&reinterpret_cast<const sockaddr_in*>(address)->sin_addr, sizeof(in_addr));
  else
    sum.add(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, sizeof(in6_addr));
}

std::uint16_t transport_checksum(int protocol, const sockaddr* from, const sockaddr* to, BytesView header,
                                 BytesView payload) {
  Checksum sum;
  add_address(sum, from);
  add_address(sum, to);
  sum.add_number(static_cast<std::uint32_t>(protocol));
  sum.add_number(static_cast<std::uint32_t>(header.size() + payload.size()));
  sum.add(header.data(), header.size());
  sum.add(payload.data(), payload.size());
  return sum.result();
}

}  // namespace

Result<PacketInjector> PacketInjector::open(int family) {
  Fd socket(::socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
  if (!socket) return fail_errno("open a raw socket");
  const int most = 4 * 1024 * 1024;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUFFORCE, &most, sizeof(most));
  return PacketInjector(family, std::move(socket));
}

Result<void> PacketInjector::send(int protocol, const sockaddr* from, const sockaddr* to, BytesView header,
                                  BytesView payload) {
  union {
    iphdr v4;
    ip6_hdr v6;
  } ip{};
  std::size_t ip_size = 0;
  // The port of a raw socket's destination must be zero for IPv6.
  sockaddr_storage target{};
  socklen_t target_size = 0;
  const std::size_t length = header.size() + payload.size();
  if (family_ == AF_INET) {
    ip.v4.version = 4;
    ip.v4.ihl = 5;
    ip.v4.ttl = 255;
    ip.v4.protocol = static_cast<std::uint8_t>(protocol);
    ip.v4.tot_len = htons(static_cast<std::uint16_t>(sizeof(iphdr) + length));
    ip.v4.saddr = reinterpret_cast<const sockaddr_in*>(from)->sin_addr.s_addr;
    ip.v4.daddr = reinterpret_cast<const sockaddr_in*>(to)->sin_addr.s_addr;
    ip_size = sizeof(iphdr);
    target_size = sizeof(sockaddr_in);
    std::memcpy(&target, to, target_size);
  } else {
    ip.v6.ip6_vfc = 6 << 4;
    ip.v6.ip6_hlim = 255;
    ip.v6.ip6_nxt = static_cast<std::uint8_t>(protocol);
    ip.v6.ip6_plen = htons(static_cast<std::uint16_t>(length));
    ip.v6.ip6_src = reinterpret_cast<const sockaddr_in6*>(from)->sin6_addr;
    ip.v6.ip6_dst = reinterpret_cast<const sockaddr_in6*>(to)->sin6_addr;
    ip_size = sizeof(ip6_hdr);
    target_size = sizeof(sockaddr_in6);
    std::memcpy(&target, to, target_size);
    reinterpret_cast<sockaddr_in6&>(target).sin6_port = 0;
  }
  std::array<iovec, 3> parts = {{{&ip, ip_size},
                                 {const_cast<std::uint8_t*>(header.data()), header.size()},
                                 {const_cast<std::uint8_t*>(payload.data()), payload.size()}}};
  const msghdr message{
      .msg_name = &target, .msg_namelen = target_size, .msg_iov = parts.data(), .msg_iovlen = parts.size()};
  if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) return fail_errno("inject a packet of {} bytes", length);
  return {};
}

Result<void> PacketInjector::tcp(const sockaddr* from, const sockaddr* to, const Segment& segment) {
  tcphdr header{};
  header.source = port_of(from);
  header.dest = port_of(to);
  header.seq = htonl(segment.sequence);
  header.ack_seq = segment.ack ? htonl(segment.acknowledged) : 0;
  header.doff = sizeof(header) / 4;
  header.fin = segment.fin;
  header.syn = segment.syn;
  header.rst = segment.reset;
  header.ack = segment.ack;
  header.window = htons(segment.window);
  const BytesView bytes(reinterpret_cast<const std::uint8_t*>(&header), sizeof(header));
  header.check = transport_checksum(IPPROTO_TCP, from, to, bytes, {});
  return send(IPPROTO_TCP, from, to, bytes, {});
}

Result<void> PacketInjector::udp(const sockaddr* from, const sockaddr* to, BytesView payload) {
  if (payload.size() > 65507) return fail(ErrorKind::invalid, "a datagram of {} bytes is too long", payload.size());
  udphdr header{};
  header.source = port_of(from);
  header.dest = port_of(to);
  header.len = htons(static_cast<std::uint16_t>(sizeof(header) + payload.size()));
  const BytesView bytes(reinterpret_cast<const std::uint8_t*>(&header), sizeof(header));
  header.check = transport_checksum(IPPROTO_UDP, from, to, bytes, payload);
  if (header.check == 0) header.check = 0xffff;
  return send(IPPROTO_UDP, from, to, bytes, payload);
}

}  // namespace godwit::kernel
