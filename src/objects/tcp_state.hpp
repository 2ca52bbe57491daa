#pragma once

#include <linux/tcp.h>

#include <set>
#include <unordered_map>

#include "objects/socket_options.hpp"

/// TCP sockets as data, and how connections are read and rebuilt (TCP_REPAIR). tcp.cpp is the kind.
namespace godwit::objects::tcp {

/// Nothing that comes from outside is larger: the kernel's own limits are below.
inline constexpr std::size_t queue_limit = 64 * MiB;

/// One direction's progress to its end.
enum class Fin : std::uint8_t { none = 0, queued = 1, acknowledged = 2 };

/// A connection that has been established, in whatever state it is now.
struct Connection {
  std::uint32_t send_sequence = 0;     ///< of the first byte that the peer has not acknowledged
  std::uint32_t receive_sequence = 0;  ///< of the first byte that the program has not read
  Bytes received;                      ///< acknowledged to the peer, not read yet
  Bytes sending;                       ///< written, not acknowledged by the peer
  std::uint32_t in_flight = 0;         ///< so many bytes of `sending` had been sent
  Fin our_fin = Fin::none;             ///< queued: comes after `sending`
  bool our_fin_sent = false;           ///< meaningful when queued
  bool their_fin = false;              ///< comes after `received`
  bool their_fin_first = false;        ///< LAST_ACK and not CLOSING, when both are queued
  bool receive_shut = false;           ///< shutdown(SHUT_RD) by the program
  std::uint32_t mss = 0;
  bool window_scaling = false, sack = false, timestamps = false;
  std::uint8_t send_scale = 0, receive_scale = 0;
  std::uint32_t timestamp = 0;  ///< what our clock of time stamps showed (Linux 6.7: bit 0 tells its unit)
  std::uint32_t window_update = 0, send_window = 0, max_window = 0, receive_window = 0, receive_window_update = 0;
  MSGPACK_DEFINE_MAP(send_sequence, receive_sequence, received, sending, in_flight, our_fin, our_fin_sent, their_fin,
                     their_fin_first, receive_shut, mss, window_scaling, sack, timestamps, send_scale, receive_scale,
                     timestamp, window_update, send_window, max_window, receive_window, receive_window_update)
};

enum class Phase : std::uint8_t {
  unconnected,  ///< new, or bound
  listening,
  connecting,  ///< SYN sent
  connected,   ///< established or half closed
  pending,     ///< connected to a listening socket of the pod's that has not accepted it
  closed,      ///< was connected, or has failed to connect; no packet will come or go
};

/// Somebody of the pod who waits to be accepted. Both ends are ours, so the connection is simply made again, by the
/// same ports: nobody can tell that its sequence numbers are others.
struct Waiting {
  ObjectId client = 0;
  int family = 0;      ///< the client's
  InetAddress remote;  ///< what it has connected to
  Bytes sent;          ///< all that the client has written
  bool fin = false;    ///< and that this was all
  MSGPACK_DEFINE_MAP(client, family, remote, sent, fin)
};

struct State {
  int family = 0;
  Phase phase = Phase::unconnected;
  InetAddress local;  ///< empty when not bound
  InetAddress remote;
  int backlog = 0;
  std::uint32_t initial_sequence = 0;  ///< connecting
  bool refused = false;                ///< closed: never was connected
  bool error_pending = false;          ///< closed: the program has not been told yet
  int max_segment = 0;                 ///< TCP_MAXSEG set before connecting; 0: not
  std::vector<Waiting> waiting;        ///< listening: in order
  SocketOptions options;
  std::vector<Connection> connection;  ///< one when connected or closed, else none
  MSGPACK_DEFINE_MAP(family, phase, local, remote, backlog, initial_sequence, refused, error_pending, max_segment,
                     waiting, options, connection)
};

/// Reads a connection without changing it. For the time of the call it is in repair mode, which sends nothing; after
/// it, it is as it was (SO_REUSEADDR included: `reuse_address` is what it was).
Result<Connection> read_connection(int fd, const tcp_info&, bool reuse_address);

/// Makes the fresh, bound socket a connection in the state given, and leaves it in repair mode, so that it is silent.
/// The packets that bring it into a half-closed state come from ourselves; all that they make it send is an
/// acknowledgement of what had been acknowledged before.
Result<void> rebuild_connection(int fd, const SocketAddress& local, const SocketAddress& remote, const Connection&,
                                Destination&);

/// Connections for which `rebuild_connection` leaves resets ignored: `heed_resets` before they are opened or reset.
bool ignores_resets(const Connection&);
Result<void> heed_resets(int fd);

/// Ends a connection in repair mode as if its peer had reset it.
Result<void> reset_connection(int fd, const SocketAddress& local, const SocketAddress& remote,
                              std::uint32_t receive_sequence, Destination&);

/// Makes a socket, whose first SYN would have this sequence number, one whose connect was refused.
Result<void> refuse_connection(int fd, const SocketAddress& local, const SocketAddress& remote,
                               std::uint32_t initial_sequence, Destination&);

/// Connects who waited to be accepted.
Result<void> connect_waiting(const Waiting&, int client);

/// What `open` needs to know of a connection, so that after the commit nothing has to be unpacked.
struct Opening {
  bool reuse = false, corked = false, push = false;
  bool ignores_resets = false;
  bool silent = false;  ///< its peer need be told nothing, or must not: it may have gone, and would answer by a reset
};
using Openings = std::unordered_map<int, Opening>;  ///< by our descriptor
inline constexpr const char* openings_key = "tcp connections to open";
Opening opening_of(const State&, const Connection&);

/// Connections that are known as established without asking: no listening sockets.
struct Established {
  std::set<ObjectId> ids;
};
inline constexpr const char* established_key = "tcp connections known as established";

[[nodiscard]] bool matches(const Descriptor&);
Result<tcp_info> info_of(int fd);
[[nodiscard]] unsigned option_sets(int family, bool connected);
/// Both ends are the pod's.
[[nodiscard]] bool is_inside(const InetAddress& local, const InetAddress& remote);
/// Whether it waits in the accept queue of one of the pod's own sockets.
Result<bool> is_pending(const Descriptor&, Source&);
/// `state` has addresses and options. `busy` when another try may succeed.
Result<Connection> capture_connected(const Descriptor&, const tcp_info&, Source&, const State&);
Result<void> bind_to(int fd, const SocketAddress&, const InetAddress& text);

Result<void> repair(int fd, int mode);
Result<void> set_sequence(int fd, int queue, std::uint32_t sequence);

}  // namespace godwit::objects::tcp

MSGPACK_ADD_ENUM(godwit::objects::tcp::Fin);
MSGPACK_ADD_ENUM(godwit::objects::tcp::Phase);
