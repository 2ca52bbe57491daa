#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <set>
#include <unordered_map>

#include "kernel/kernel_state.hpp"
#include "kernel/sock_diag.hpp"
#include "objects/injection.hpp"
#include "objects/kinds.hpp"
#include "objects/tcp_state.hpp"
#include "objects/typed.hpp"

/// TCP sockets: listening, connecting, connected and half closed, closed.
namespace godwit::objects {
namespace tcp {
namespace {

constexpr int state_established = 1, state_syn_sent = 2, state_syn_received = 3, state_closed = 7, state_listening = 10;
constexpr int send_queue = 2;
constexpr int default_mss = 536;

}  // namespace

bool matches(const Descriptor& descriptor) {
  const auto is = socket_class(descriptor);
  return (is.domain == AF_INET || is.domain == AF_INET6) && is.type == SOCK_STREAM &&
         (is.protocol == IPPROTO_TCP || is.protocol == IPPROTO_MPTCP);
}

Result<tcp_info> info_of(int fd) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return fail_errno("TCP_INFO");
  return info;
}

namespace {

/// What poll(2) tells of a socket without changing it.
int poll_events(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN | POLLPRI | POLLRDHUP, .revents = 0};
  return ::poll(&entry, 1, 0) > 0 ? entry.revents : 0;
}

bool is_unset(const InetAddress& address) {
  return address.port == 0;
}

/// What sock_diag knows of the pod's TCP sockets, IPv4 and IPv6; each read once.
struct Table {
  Fd diag;
  std::map<int, std::vector<kernel::TcpSocket>> families;
};

Result<const std::vector<kernel::TcpSocket>*> diag_table(const Descriptor& descriptor, int family, Source& source,
                                                         const std::string& key, unsigned states) {
  auto& table = source.shared<Table>(key);
  if (const auto known = table.families.find(family); known != table.families.end()) return &known->second;
  if (!table.diag) table.diag = TRY(kernel::open_sock_diag(descriptor.fd));
  auto sockets = TRY(kernel::tcp_sockets(table.diag.get(), family, states, states == kernel::tcp_all_states));
  return &table.families.emplace(family, std::move(sockets)).first->second;
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  if (socket_class(descriptor).protocol == IPPROTO_MPTCP)
    return fail(ErrorKind::refused, "{}: a Multipath TCP socket can't move", describe(descriptor));
  std::array<char, 16> protocol{};
  socklen_t length = protocol.size();
  if (::getsockopt(descriptor.fd, IPPROTO_TCP, TCP_ULP, protocol.data(), &length) == 0 && length != 0 &&
      protocol[0] != 0)
    return fail(ErrorKind::refused, "{}: a TCP socket with the upper layer protocol '{}' can't move",
                describe(descriptor), protocol.data());
  constexpr int tcp_ao_info = 40;
  std::array<std::uint8_t, 128> authentication{};
  length = authentication.size();
  if (::getsockopt(descriptor.fd, IPPROTO_TCP, tcp_ao_info, authentication.data(), &length) == 0)
    return fail(ErrorKind::refused, "{}: a TCP socket with authentication (TCP-AO) can't move", describe(descriptor));
  const int family = socket_class(descriptor).domain;
  for (const auto& socket :
       *TRY(diag_table(descriptor, family, source, "tcp sockets, preflight", kernel::tcp_all_states)))
    if (socket.inode == descriptor.status.st_ino && socket.signed_md5)
      return fail(ErrorKind::refused, "{}: a TCP socket with MD5 signatures can't move", describe(descriptor));
  kernel::prepare_to_read_kernel_state();
  return check_socket_options(descriptor);
}

}  // namespace

unsigned option_sets(int family, bool connected) {
  unsigned sets = option_tcp;
  sets |= family == AF_INET6 ? option_ipv6 : option_ipv4;
  sets |= connected ? option_established : option_listener;
  return sets;
}

namespace {

/// The accept queues of all the pod's listening sockets, and which of the pod's sockets are in them.
struct AcceptQueue {
  std::vector<Waiting> waiting;
  std::string problem;  ///< why it can't be rebuilt
};
struct AcceptQueues {
  bool read = false;
  std::map<ObjectId, AcceptQueue> listeners;
  std::set<ObjectId> clients;
};

bool joins(const Descriptor& client, const kernel::PendingConnection& connection) {
  if (!S_ISSOCK(client.status.st_mode) || !matches(client)) return false;
  const auto peer = peer_address(client.fd);
  const auto local = local_address(client.fd);
  return peer && local && inet_address(*peer).port == connection.local_port &&
         inet_address(*local).port == connection.remote_port;
}

/// What has been written is what the other end has, and behind it what it has not got or not acknowledged yet.
Result<Waiting> capture_waiting(const Descriptor& client, kernel::PendingConnection& connection) {
  const auto local = TRY(local_address(client.fd));
  const auto peer = peer_address(client.fd);
  if (!peer) return fail(ErrorKind::busy, "its client has been reset");
  const bool reuse = int_option(client.fd, SOL_SOCKET, SO_REUSEADDR) != 0;
  const auto mine = TRY(read_connection(client.fd, TRY(info_of(client.fd)), reuse));
  Waiting waiting{.client = client.id,
                  .family = local.storage.ss_family,
                  .remote = inet_address(*peer),
                  .sent = std::move(connection.received.front()),
                  .fin = mine.our_fin != Fin::none};
  const std::uint32_t known = connection.received_to - mine.send_sequence;
  if (known < mine.sending.size())
    waiting.sent.insert(waiting.sent.end(), mine.sending.begin() + known, mine.sending.end());
  return waiting;
}

Result<AcceptQueue> capture_queue(const Descriptor& listener, Source& source, std::set<ObjectId>& clients) {
  AcceptQueue queue;
  for (auto& connection : TRY(kernel::pending_tcp_connections(listener.fd))) {
    const Descriptor* client = nullptr;
    for (const auto& each : source.descriptors())
      if (joins(each, connection)) client = &each;
    if (client == nullptr) {
      queue.problem = fmt::format("port {} is not the pod's, or closed", connection.remote_port);
      return queue;
    }
    queue.waiting.push_back(TRY(capture_waiting(*client, connection)));
    clients.insert(client->id);
  }
  return queue;
}

Result<AcceptQueues*> accept_queues(Source& source) {
  auto& queues = source.shared<AcceptQueues>("tcp accept queues");
  if (queues.read) return &queues;
  const auto& established = source.shared<Established>(established_key).ids;
  for (const auto& each : source.descriptors()) {
    if (!S_ISSOCK(each.status.st_mode) || established.contains(each.id) || !matches(each)) continue;
    if (int_option(each.fd, SOL_SOCKET, SO_ACCEPTCONN) != 1 || TRY(info_of(each.fd)).tcpi_unacked == 0) continue;
    auto queue = capture_queue(each, source, queues.clients);
    queues.listeners[each.id] = queue ? std::move(*queue) : AcceptQueue{{}, queue.error().message()};
  }
  queues.read = true;
  return &queues;
}

/// Connections that are not the program's yet have no descriptor. A handshake in progress ends within a round trip, and
/// a listening program accepts at once: who asks again finds none.
Result<void> check_listener(const Descriptor& descriptor, Source& source, const tcp_info& info, State& state) {
  if (info.tcpi_unacked != 0) {
    auto& queue = TRY(accept_queues(source))->listeners[descriptor.id];
    if (!queue.problem.empty())
      return fail(ErrorKind::busy, "{}: {} connections to {} are not accepted yet ({})", describe(descriptor),
                  info.tcpi_unacked, describe(state.local), queue.problem);
    state.waiting = std::move(queue.waiting);
  }
  // IPv4 handshakes with an IPv6 socket are IPv4's.
  for (const int family : {AF_INET, AF_INET6}) {
    if (family == AF_INET6 && state.family == AF_INET) break;
    for (const auto& socket : *TRY(diag_table(descriptor, family, source, "tcp handshakes", 1u << state_syn_received)))
      // Who has not answered for a second will hardly do it now, and may be nobody at all (a port scan).
      if (socket.local_port == state.local.port && socket.retransmits == 0)
        return fail(ErrorKind::busy, "{}: a connection to {} is being established", describe(descriptor),
                    describe(state.local));
  }
  return {};
}

/// Sockets that still have the memory of a connection although none is left.
Result<void> capture_closed(const Descriptor& descriptor, const tcp_info& info, int events, State& state) {
  state.phase = Phase::closed;
  state.error_pending = events & POLLERR;
  auto connection = TRY(read_connection(descriptor.fd, info, state.options.value("SO_REUSEADDR") != 0));
  // The sequence numbers of a connection that was never answered are zero.
  state.refused = connection.receive_sequence == 0 && connection.received.empty();
  connection.sending.clear();
  connection.in_flight = 0;
  // A reset after the peer's end is told as EPIPE instead of ECONNRESET, and reading gives the end.
  connection.their_fin = !state.refused && kernel::tcp_has_ended(descriptor.fd).value_or(false);
  connection.their_fin_first = true;
  connection.receive_sequence -= connection.their_fin ? 1 : 0;
  connection.our_fin_sent = false;
  state.connection.push_back(std::move(connection));
  return {};
}

/// The connections within the pod: who is at the other end of whom, and what was read of both ends together.
struct Inside {
  bool read = false;
  std::map<std::pair<std::string, std::string>, const Descriptor*> ends;  ///< by own and other address
  std::map<ObjectId, Connection> known;
};

}  // namespace

Result<bool> is_pending(const Descriptor& descriptor, Source& source) {
  return TRY(accept_queues(source))->clients.contains(descriptor.id);
}

bool is_inside(const InetAddress& local, const InetAddress& remote) {
  const auto loopback = [](const InetAddress& address) {
    return address.ip.starts_with("127.") || address.ip == "::1" || address.ip.starts_with("::ffff:127.");
  };
  return local.ip == remote.ip || loopback(local) || loopback(remote);
}

namespace {

/// An IPv4 connection may have an IPv6 socket at one end.
std::string wire_text(const SocketAddress& address) {
  return describe(inet_address(on_wire(address)));
}

Result<const Descriptor*> other_end(const State& state, Source& source, Inside& inside) {
  if (!inside.read) {
    for (const auto& each : source.descriptors()) {
      if (!S_ISSOCK(each.status.st_mode) || !matches(each)) continue;
      const auto local = local_address(each.fd);
      const auto peer = peer_address(each.fd);
      if (local && peer) inside.ends[{wire_text(*local), wire_text(*peer)}] = &each;
    }
    inside.read = true;
  }
  const auto local = TRY(socket_address(state.family, state.local)),
             remote = TRY(socket_address(state.family, state.remote));
  const auto found = inside.ends.find({wire_text(remote), wire_text(local)});
  return found == inside.ends.end() ? nullptr : found->second;
}

std::uint32_t received_to(const Connection& connection) {
  return connection.receive_sequence + static_cast<std::uint32_t>(connection.received.size()) +
         (connection.their_fin ? 1 : 0);
}

/// Whether `sender` knows something as acknowledged that `receiver` has not got: it was read too early.
bool is_behind(const Connection& receiver, const Connection& sender) {
  return static_cast<std::int32_t>(sender.send_sequence - received_to(receiver)) > 0;
}

/// Both ends of a connection within the pod are read together: what its kernel has moved from one to the other in
/// between would be lost.
Result<Connection> read_both(const Descriptor& descriptor, const tcp_info& info, const State& state, Source& source) {
  auto mine = TRY(read_connection(descriptor.fd, info, state.options.value("SO_REUSEADDR") != 0));
  if (!is_inside(state.local, state.remote)) return mine;
  auto& inside = source.shared<Inside>("tcp connections inside");
  if (const auto known = inside.known.find(descriptor.id); known != inside.known.end()) return known->second;
  const auto* other = TRY(other_end(state, source, inside));
  if (other == nullptr) return mine;
  const auto read = [](const Descriptor& end) -> Result<Connection> {
    return read_connection(end.fd, TRY(info_of(end.fd)), int_option(end.fd, SOL_SOCKET, SO_REUSEADDR) != 0);
  };
  const int other_state = TRY(info_of(other->fd)).tcpi_state;
  if (other_state == state_closed) return mine;
  auto theirs = TRY(read(*other));
  constexpr int tries = 20;
  for (int i = 0; is_behind(mine, theirs) || is_behind(theirs, mine); ++i) {
    if (i == tries) return fail(ErrorKind::busy, "{}: data is on its way within the pod", describe(descriptor));
    if (is_behind(mine, theirs))
      mine = TRY(read(descriptor));
    else
      theirs = TRY(read(*other));
  }
  inside.known.emplace(other->id, std::move(theirs));
  return mine;
}

}  // namespace

Result<Connection> capture_connected(const Descriptor& descriptor, const tcp_info& info, Source& source,
                                     const State& state) {
  const int events = poll_events(descriptor.fd);
  if (events & POLLPRI) return fail(ErrorKind::busy, "{}: TCP urgent data is unread", describe(descriptor));
  if (events & POLLERR) return fail(ErrorKind::busy, "{}: an error or a time stamp is unread", describe(descriptor));
  auto connection = TRY(read_both(descriptor, info, state, source));
  connection.receive_shut = (events & POLLRDHUP) != 0 && !connection.their_fin;
  return connection;
}

namespace {

Result<State> capture(const Descriptor& descriptor, Source& source) {
  State state;
  const int fd = descriptor.fd;
  const auto info = TRY(info_of(fd));
  const int tcp_state = info.tcpi_state;
  const auto local = TRY(local_address(fd));
  state.family = local.storage.ss_family;
  state.local = inet_address(local);
  if (const auto peer = peer_address(fd)) state.remote = inet_address(*peer);
  const bool connected = tcp_state != state_closed && tcp_state != state_listening && tcp_state != state_syn_sent;
  state.options = TRY(read_socket_options(descriptor, option_sets(state.family, connected)));
  if (!connected) {
    const int mss = int_option(fd, IPPROTO_TCP, TCP_MAXSEG, default_mss);
    state.max_segment = mss == default_mss || tcp_state == state_syn_sent ? 0 : mss;
  }
  switch (tcp_state) {
    case state_listening:
      TRY(check_listener(descriptor, source, info, state));
      state.phase = Phase::listening;
      state.backlog = static_cast<int>(info.tcpi_sacked);
      break;
    case state_syn_sent: {
      state.phase = Phase::connecting;
      const auto connection = TRY(read_connection(fd, info, state.options.value("SO_REUSEADDR") != 0));
      state.initial_sequence = connection.send_sequence - 1;
      break;
    }
    case state_syn_received:
      return fail(ErrorKind::busy, "{}: a connection is being established", describe(descriptor));
    case state_closed:
      if (!is_unset(state.remote)) TRY(capture_closed(descriptor, info, poll_events(fd), state));
      break;
    default:
      if (TRY(is_pending(descriptor, source))) {
        state.phase = Phase::pending;
        break;
      }
      state.phase = Phase::connected;
      state.connection.push_back(TRY(capture_connected(descriptor, info, source, state)));
  }
  return state;
}

}  // namespace

Result<void> bind_to(int fd, const SocketAddress& address, const InetAddress& text) {
  if (::bind(fd, address.get(), address.length) != 0) return fail_errno("bind to {}", describe(text));
  return {};
}

namespace {

/// Listening sockets and those that are only bound. Connections of the same port may stand already: with SO_REUSEADDR
/// for the time of the bind they are no obstacle, as they were none where they were made in the other order.
Result<void> rebuild_unconnected(int fd, const State& state) {
  if (state.max_segment != 0) TRY(set_int_option(fd, IPPROTO_TCP, TCP_MAXSEG, state.max_segment));
  if (!is_unset(state.local)) {
    TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
    TRY(bind_to(fd, TRY(socket_address(state.family, state.local)), state.local));
  }
  if (state.phase == Phase::listening && ::listen(fd, state.backlog) != 0)
    return fail_errno("listen on {}", describe(state.local));
  return set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, state.options.value("SO_REUSEADDR") != 0);
}

/// A connect that has been answered by a reset: asked again with the same sequence number, and answered by ourselves.
Result<void> rebuild_refused(int fd, const State& state, const Connection& connection, const SocketAddress& local,
                             const SocketAddress& remote, Destination& destination) {
  const std::uint32_t initial = connection.send_sequence - 1;
  TRY(set_sequence(fd, send_queue, initial));
  TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
  TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, state.options.value("SO_REUSEADDR") != 0));
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  if (::connect(fd, remote.get(), remote.length) != 0 && errno != EINPROGRESS)
    return fail_errno("connect to {}", describe(state.remote));
  ::fcntl(fd, F_SETFL, flags);
  return refuse_connection(fd, local, remote, initial, destination);
}

Result<void> rebuild_closed(int fd, const State& state, const SocketAddress& local, const SocketAddress& remote,
                            Destination& destination) {
  const auto& connection = state.connection.front();
  if (state.refused) {
    TRY(rebuild_refused(fd, state, connection, local, remote, destination));
  } else {
    TRY(rebuild_connection(fd, local, remote, connection, destination));
    const auto next = connection.receive_sequence + static_cast<std::uint32_t>(connection.received.size()) +
                      (connection.their_fin ? 1 : 0);
    if (ignores_resets(connection)) TRY(heed_resets(fd));
    TRY(reset_connection(fd, local, remote, next, destination));
    TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
    TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, state.options.value("SO_REUSEADDR") != 0));
  }
  // Reading the error is what takes it away.
  if (!state.error_pending) static_cast<void>(int_option(fd, SOL_SOCKET, SO_ERROR));
  return {};
}

}  // namespace

Opening opening_of(const State& state, const Connection& connection) {
  return {.reuse = state.options.value("SO_REUSEADDR") != 0,
          .corked = state.options.value("TCP_CORK") != 0,
          .push = !connection.sending.empty() || connection.our_fin == Fin::queued,
          // A filter of the program's own has taken the place of ours.
          .ignores_resets = ignores_resets(connection) && state.options.filter.empty(),
          // Who has sent its FIN needs no window.
          .silent = connection.their_fin && connection.our_fin == Fin::none && connection.sending.empty()};
}

namespace {

Result<Fd> build(const State& state, Destination& destination) {
  if (state.family != AF_INET && state.family != AF_INET6)
    return fail(ErrorKind::invalid, "a TCP socket of family {}", state.family);
  const bool has_connection = state.phase == Phase::connected || state.phase == Phase::closed;
  if (has_connection != (state.connection.size() == 1))
    return fail(ErrorKind::invalid, "a TCP socket with {} connections", state.connection.size());
  Fd socket(::socket(state.family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!socket) return fail_errno("make a TCP socket");
  const int fd = socket.get();
  const SocketClass is{state.family, SOCK_STREAM, IPPROTO_TCP};
  TRY(write_socket_options(fd, is, state.options, OptionStage::early, destination));
  if (state.phase == Phase::unconnected || state.phase == Phase::listening) {
    TRY(rebuild_unconnected(fd, state));
    TRY(write_socket_options(fd, is, state.options, OptionStage::late, destination));
    return socket;
  }
  const auto local = TRY(socket_address(state.family, state.local));
  const auto remote = TRY(socket_address(state.family, state.remote));
  // In repair mode a port is given to whoever asks.
  TRY(repair(fd, TCP_REPAIR_ON));
  TRY(bind_to(fd, local, state.local));
  if (state.phase == Phase::connecting) {
    TRY(set_sequence(fd, send_queue, state.initial_sequence));
    TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
  } else if (state.phase == Phase::pending) {
    TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
  } else if (state.phase == Phase::closed) {
    TRY(rebuild_closed(fd, state, local, remote, destination));
  } else {
    TRY(rebuild_connection(fd, local, remote, state.connection.front(), destination));
    destination.shared<Openings>(openings_key)[fd] = opening_of(state, state.connection.front());
  }
  TRY(write_socket_options(fd, is, state.options, OptionStage::late, destination));
  return socket;
}

/// Connected: out of repair mode. It tells the peer its window and sends what waits. Connecting: the first SYN again,
/// with the number it had.
Result<void> open_connection(int fd, const Opening& opening) {
  if (opening.ignores_resets) TRY(heed_resets(fd));
  TRY(repair(fd, opening.silent ? TCP_REPAIR_OFF_NO_WP : TCP_REPAIR_OFF));
  if (opening.reuse) TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  // Setting TCP_CORK to what it is pushes what may go.
  if (opening.push) TRY(set_int_option(fd, IPPROTO_TCP, TCP_CORK, opening.corked));
  return {};
}

Result<void> open(BytesView bytes, int fd, Destination& destination) {
  const auto& openings = destination.shared<Openings>(openings_key);
  if (const auto known = openings.find(fd); known != openings.end()) return open_connection(fd, known->second);
  const auto state = TRY(image::unpack<State>(bytes));
  if (state.phase == Phase::connected && state.connection.size() == 1)
    return open_connection(fd, opening_of(state, state.connection.front()));
  for (const auto& waiting : state.waiting) TRY(connect_waiting(waiting, destination.built(waiting.client)));
  if (state.phase != Phase::connecting) return {};
  const auto remote = TRY(socket_address(state.family, state.remote));
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  const int result = ::connect(fd, remote.get(), remote.length);
  const int code = errno;
  ::fcntl(fd, F_SETFL, flags);
  if (result != 0 && code != EINPROGRESS) {
    errno = code;
    return fail_errno("connect to {}", describe(state.remote));
  }
  return {};
}

}  // namespace
}  // namespace tcp

const Kind tcp_kind{.name = "tcp",
                    .matches = tcp::matches,
                    .preflight = tcp::preflight,
                    .capture = captures<tcp::State, tcp::capture>,
                    .build = builds<tcp::State, tcp::build>,
                    .attach = nothing_to_attach,
                    .open = tcp::open};

}  // namespace godwit::objects
