#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

/// Packets that the local stack takes for a peer's: made by hand and sent to an address of our own, they come in over
/// the loopback device. Whoever sends must be in the network namespace meant, whose loopback must be up.
namespace godwit::kernel {

/// Sends such packets. One per address family is enough for a network namespace.
class PacketInjector {
 public:
  /// AF_INET or AF_INET6; needs CAP_NET_RAW.
  static Result<PacketInjector> open(int family);

  struct Segment {
    std::uint32_t sequence = 0;
    std::uint32_t acknowledged = 0;
    std::uint16_t window = 0;  ///< as it stands in the header: already scaled down
    bool fin = false, syn = false, reset = false, ack = true;
  };
  /// A TCP segment without data or options. Addresses are sockaddr_in or sockaddr_in6 of the injector's family.
  Result<void> tcp(const sockaddr* from, const sockaddr* to, const Segment&);
  /// A UDP datagram of up to 65,507 bytes (IPv4) or 65,488 (IPv6: the loopback's MTU).
  Result<void> udp(const sockaddr* from, const sockaddr* to, BytesView payload);

 private:
  PacketInjector(int family, Fd socket) : family_(family), socket_(std::move(socket)) {}
  Result<void> send(int protocol, const sockaddr* from, const sockaddr* to, BytesView header, BytesView payload);
  int family_;
  Fd socket_;
};

}  // namespace godwit::kernel
