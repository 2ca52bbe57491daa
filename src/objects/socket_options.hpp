#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "objects/kind.hpp"

/// What a program has set on a socket by setsockopt, and what every kind of socket needs to read and give it back.
namespace godwit::objects {

/// An IPv4 or IPv6 address as people and other languages read it.
struct InetAddress {
  std::string ip;  ///< text form; empty when there is none
  std::uint16_t port = 0;
  std::uint32_t scope = 0;  ///< interface of a link-local address; the pod's interfaces keep their numbers
  MSGPACK_DEFINE_MAP(ip, port, scope)
  bool operator==(const InetAddress&) const = default;
};

/// A kernel socket address of any family.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

[[nodiscard]] InetAddress inet_address(const SocketAddress&);
/// `invalid` when the text is no address of the family (AF_INET or AF_INET6).
Result<SocketAddress> socket_address(int family, const InetAddress&);
[[nodiscard]] std::string describe(const InetAddress&);

/// Options that differ from what a new socket has. Names are the constants' names, values plain integers; times are in
/// microseconds, SO_LINGER is -1 when off and seconds when on.
struct SocketOptions {
  std::vector<std::pair<std::string, std::int64_t>> values;
  std::string device;      ///< SO_BINDTODEVICE
  std::string congestion;  ///< TCP_CONGESTION
  Bytes filter;            ///< classic BPF program: struct sock_filter, 8 bytes each
  int flags = 0;           ///< O_NONBLOCK or 0; the signal owner is everybody's (common.hpp)
  std::uint32_t uid = 0, gid = 0;
  MSGPACK_DEFINE_MAP(values, device, congestion, filter, flags, uid, gid)
  /// The value of an option that was recorded, else `otherwise`.
  [[nodiscard]] std::int64_t value(std::string_view name, std::int64_t otherwise = 0) const;
};

/// The sets of options to look at.
enum OptionSet : unsigned {
  option_base = 1,
  option_ipv4 = 2,
  option_ipv6 = 4,
  option_tcp = 8,
  option_udp = 16,
  option_unix = 32,
  option_listener = 64,  ///< TCP sockets that are not connected: what accepted ones will inherit
  option_netlink = 128,
  option_established = 256,  ///< TCP connections: buffers that the kernel sizes itself are left to it
};

/// Reads the options of a socket. `busy` is never returned: reading changes nothing.
Result<SocketOptions> read_socket_options(const Descriptor&, unsigned sets);

/// When an option can be given back.
enum class OptionStage {
  early,  ///< before bind and connect
  late    ///< when the socket is in its state and its queues are full: what would disturb the rebuild
};
/// SO_DOMAIN, SO_TYPE, SO_PROTOCOL; {-1, -1, -1} for what is no socket.
struct SocketClass {
  int domain = -1, type = -1, protocol = -1;
  auto operator<=>(const SocketClass&) const = default;
};
[[nodiscard]] SocketClass socket_class(const Descriptor&);

/// Sets what differs from a new socket's of this class. Destination's shared state keeps what new sockets have.
Result<void> write_socket_options(int fd, const SocketClass&, const SocketOptions&, OptionStage, Destination&);

/// Whether anything is to be set at the late stage but SO_REUSEADDR, which a connection gets when it is opened, and the
/// flags.
bool has_late_options(const SocketClass&, const SocketOptions&, Destination&);

/// What can't be moved although it is only an option (eBPF filters, zero-copy sends): `refused`, by name.
Result<void> check_socket_options(const Descriptor&);

/// getsockopt of an int; `otherwise` when the kernel or the socket doesn't know it.
[[nodiscard]] int int_option(int fd, int level, int name, int otherwise = 0);
Result<void> set_int_option(int fd, int level, int name, int value);
Result<SocketAddress> local_address(int fd);
/// nullopt when it has no peer. Also the former peer of a closed connection (SO_PEERNAME).
[[nodiscard]] std::optional<SocketAddress> peer_address(int fd);
/// Makes room in a buffer for `bytes` of content, past the node's limits; does nothing when there is enough.
Result<void> ensure_send_buffer(int fd, std::size_t bytes);
Result<void> ensure_receive_buffer(int fd, std::size_t bytes);

/// "fd 5 of process 12": where the user finds it.
[[nodiscard]] std::string describe(const Descriptor&);

}  // namespace godwit::objects
