#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

/// What NETLINK_SOCK_DIAG tells of all sockets of a network namespace, those without a descriptor included.
namespace godwit::kernel {

/// A socket made in the network namespace that the socket `fd` belongs to (SIOCGSKNS). The calling thread goes there
/// and comes back.
Result<Fd> open_socket_beside(int fd, int domain, int type, int protocol);
/// /proc/net/NAME of that namespace: the interfaces' multicast groups, say.
Result<std::string> read_network_file(int fd, const std::string& name);
/// A sock_diag socket in that namespace.
Result<Fd> open_sock_diag(int fd);

inline constexpr unsigned tcp_all_states = 0xfff;

struct TcpSocket {
  std::uint32_t inode = 0;  ///< 0: no descriptor (closed by the program, or not accepted yet)
  int state = 0;            ///< TCP_ESTABLISHED = 1 … as in linux/tcp_states.h; 3 is a handshake in progress
  std::uint16_t local_port = 0, remote_port = 0;
  std::uint32_t send_queue = 0;  ///< bytes not acknowledged by the peer, FIN included; backlog limit of a listener
  unsigned retransmits = 0;
  bool signed_md5 = false;
};
/// Those in one of `states` (1 << state), of AF_INET or AF_INET6. Only with `details` is known who signs. Takes as long
/// as the hash table is large that the namespace shares with the node (0.15 ms for 262,144 entries), or small where it
/// has one of its own (net.ipv4.tcp_child_ehash_entries when it was made).
Result<std::vector<TcpSocket>> tcp_sockets(int diag, int family, unsigned states, bool details = false);

/// Connections that a program has closed but whose last bytes the peer has not acknowledged yet. They have no
/// descriptor and can't move: drain them before the freeze, bounded, or name them.
Result<std::size_t> count_lingering_tcp(int diag);

struct UnixSocket {
  std::uint32_t inode = 0;
  int type = 0;   ///< SOCK_STREAM …
  int state = 0;  ///< 1 connected, 7 unconnected, 10 listening
  Bytes name;     ///< as in sun_path; an abstract one begins with a zero byte; empty when it has none
  std::optional<std::uint32_t> bound_inode;  ///< of the file it is bound to
  std::uint32_t peer = 0;                    ///< inode of the socket it is connected to; 0: none
  std::vector<std::uint32_t> pending;  ///< listening: the sockets that wait to be accepted, in order; 0: it has gone
  std::uint32_t receive_queue = 0;     ///< bytes to be read; connections to be accepted when listening
  std::uint32_t send_queue = 0;        ///< memory of what has been written and not read; the backlog when listening
  int shutdown = 0;                    ///< 1 receiving, 2 sending
};
Result<std::vector<UnixSocket>> unix_sockets(int diag);

}  // namespace godwit::kernel
