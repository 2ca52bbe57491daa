#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "objects/injection.hpp"
#include "objects/tcp_state.hpp"

namespace godwit::objects::tcp {
namespace {

using kernel::PacketInjector;

// enum in linux/tcp.h, and option kinds of RFC 9293 that its header doesn't name.
constexpr int receive_queue = 1, send_queue = 2;
constexpr std::uint32_t option_mss = 2, option_window = 3, option_sack = 4, option_timestamp = 8;
// States of RFC 9293 as the kernel numbers them.
constexpr int fin_wait1 = 4, fin_wait2 = 5, closed = 7, close_wait = 8, last_ack = 9, closing = 11;

/// What a new connection may send before its first acknowledgement (RFC 6928): up to here, all that is in flight is
/// simply sent again when the socket opens, so that what was lost on the way out of the frozen pod costs a round trip
/// and not a retransmission timeout of a second.
constexpr std::uint32_t initial_window_segments = 10;

Result<std::uint32_t> sequence(int fd, int queue) {
  TRY(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
  std::uint32_t value = 0;
  socklen_t length = sizeof(value);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &value, &length) != 0) return fail_errno("read a sequence number");
  return value;
}

Result<int> queued(int fd, unsigned long request) {
  int bytes = 0;
  if (::ioctl(fd, request, &bytes) != 0) return fail_errno("read the length of a queue");
  return bytes;
}

Result<Bytes> peek(int fd, std::size_t size) {
  if (size > queue_limit) return fail(ErrorKind::refused, "a queue of {} bytes is over the limit", size);
  Bytes bytes(size);
  std::size_t got = 0;
  if (size != 0) {
    const ssize_t count = ::recv(fd, bytes.data(), size, MSG_PEEK | MSG_DONTWAIT);
    if (count < 0) return fail_errno("peek a queue of {} bytes", size);
    got = static_cast<std::size_t>(count);
  }
  if (got != size) return fail(ErrorKind::busy, "peeked {} of {} queued bytes", got, size);
  return bytes;
}

Result<Bytes> peek_received(int fd) {
  const auto size = static_cast<std::size_t>(TRY(queued(fd, SIOCINQ)));
  if (size == 0) return Bytes{};
  const int offset = int_option(fd, SOL_SOCKET, SO_PEEK_OFF, -1);
  if (offset < 0) return peek(fd, size);
  TRY(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
  auto bytes = peek(fd, size);
  TRY(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, offset));
  return bytes;
}

/// All that can only be read in repair mode.
Result<void> read_repaired(int fd, Connection& connection, std::size_t unacknowledged) {
  const bool our_fin = connection.our_fin == Fin::queued;
  const std::uint32_t received_to = TRY(sequence(fd, receive_queue));
  if (static_cast<std::size_t>(TRY(queued(fd, SIOCINQ))) != connection.received.size())
    return fail(ErrorKind::busy, "something came in by loopback just now");
  connection.receive_sequence =
      received_to - static_cast<std::uint32_t>(connection.received.size()) - (connection.their_fin ? 1 : 0);
  const std::uint32_t written_to = TRY(sequence(fd, send_queue));
  connection.send_sequence = written_to - static_cast<std::uint32_t>(unacknowledged);
  connection.sending = TRY(peek(fd, unacknowledged - (our_fin ? 1 : 0)));
  connection.mss = static_cast<std::uint32_t>(int_option(fd, IPPROTO_TCP, TCP_MAXSEG));
  if (connection.timestamps)
    connection.timestamp = static_cast<std::uint32_t>(int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP));
  tcp_repair_window window{};
  socklen_t length = sizeof(window);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &length) != 0)
    return fail_errno("read the window of a connection");
  connection.window_update = window.snd_wl1;
  connection.send_window = window.snd_wnd;
  connection.max_window = window.max_window;
  connection.receive_window = window.rcv_wnd;
  connection.receive_window_update = window.rcv_wup;
  return {};
}

/// A segment from the peer to us. It counts as having come in by the device that has the address. The answer, if any,
/// acknowledges nothing that was not acknowledged before.
Result<void> inject(const SocketAddress& local, const SocketAddress& remote, const PacketInjector::Segment& segment,
                    Destination& destination) {
  const SocketAddress from = on_wire(remote), to = on_wire(local);
  return TRY(packet_injector(destination, from.storage.ss_family))->tcp(from.get(), to.get(), segment);
}

/// The state that the kernel says the connection is in.
int state_of(int fd) {
  tcp_info info{};
  socklen_t length = offsetof(tcp_info, tcpi_ca_state);
  return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 ? info.tcpi_state : -1;
}

/// Loopback delivers in the sender's own softirq, unless that has been put off to a thread: then it takes a moment.
Result<void> await_state(int fd, int state) {
  for (int round = 0; round < 1'000; ++round) {
    if (state_of(fd) == state) return {};
    ::poll(nullptr, 0, round < 100 ? 0 : 1);
  }
  return fail(ErrorKind::failed, "a connection stays in state {} instead of {}", state_of(fd), state);
}

Result<void> set_window(int fd, const Connection& connection) {
  const tcp_repair_window window{.snd_wl1 = connection.window_update,
                                 .snd_wnd = connection.send_window,
                                 .max_window = connection.max_window,
                                 .rcv_wnd = connection.receive_window,
                                 .rcv_wup = connection.receive_window_update};
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof(window)) != 0)
    return fail_errno("set the window of a connection");
  return {};
}

/// Lets nothing out that is written from now on.
Result<void> shut_window(int fd, const Connection& connection) {
  tcp_repair_window window{};
  socklen_t length = sizeof(window);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &length) != 0) return fail_errno("read a window");
  window.snd_wl1 = connection.window_update;
  window.snd_wnd = 0;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, length) != 0) return fail_errno("shut a window");
  return {};
}

Result<void> fill(int fd, BytesView bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd, bytes.data(), std::min(bytes.size(), 256 * KiB), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count <= 0) return fail_errno("fill a queue ({} bytes left)", bytes.size());
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<void> set_options(int fd, const Connection& connection) {
  std::array<tcp_repair_opt, 4> options{};
  std::size_t count = 0;
  if (connection.sack) options[count++] = {option_sack, 0};
  if (connection.window_scaling)
    options[count++] = {option_window,
                        static_cast<std::uint32_t>(connection.send_scale | connection.receive_scale << 16)};
  if (connection.timestamps) options[count++] = {option_timestamp, 0};
  options[count++] = {option_mss, connection.mss};
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                   static_cast<socklen_t>(count * sizeof(options[0]))) != 0)
    return fail_errno("set what a connection has negotiated");
  if (!connection.timestamps) return {};
  return set_int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP, static_cast<int>(connection.timestamp));
}

/// Fills the send queue. What counts as sent goes in in repair mode; the rest is written as a program would, into a
/// window that is shut meanwhile.
Result<void> fill_send_queue(int fd, const Connection& connection) {
  const bool fin = connection.our_fin == Fin::queued;
  if (connection.sending.empty() && !fin) return {};
  TRY(ensure_send_buffer(fd, connection.sending.size()));
  const std::uint32_t again = std::min(connection.mss * initial_window_segments, connection.send_window);
  const bool all_again = connection.in_flight + (connection.our_fin_sent ? 1 : 0) <= again;
  const std::size_t sent = all_again ? 0 : connection.in_flight;
  const BytesView bytes(connection.sending);
  TRY(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, send_queue));
  TRY(fill(fd, bytes.first(sent)));
  if (fin && connection.our_fin_sent && !all_again) {
    if (::shutdown(fd, SHUT_WR) != 0) return fail_errno("shut the sending side");
    return {};
  }
  TRY(shut_window(fd, connection));
  TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
  TRY(fill(fd, bytes.subspan(sent)));
  if (fin && ::shutdown(fd, SHUT_WR) != 0) return fail_errno("shut the sending side");
  return repair(fd, TCP_REPAIR_ON);
}

}  // namespace

Result<void> repair(int fd, int mode) {
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &mode, sizeof(mode)) != 0)
    return fail_errno("turn repair mode {}", mode == TCP_REPAIR_ON ? "on" : "off");
  return {};
}

Result<void> set_sequence(int fd, int queue, std::uint32_t sequence) {
  TRY(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
  return set_int_option(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(sequence));
}

namespace {

Result<Connection> read_once(int fd, const tcp_info& info, bool reuse_address) {
  Connection connection;
  const int tcp_state = info.tcpi_state;
  connection.their_fin = tcp_state == close_wait || tcp_state == last_ack || tcp_state == closing;
  connection.their_fin_first = tcp_state != closing;
  connection.our_fin = tcp_state == fin_wait2                                                    ? Fin::acknowledged
                       : tcp_state == fin_wait1 || tcp_state == last_ack || tcp_state == closing ? Fin::queued
                                                                                                 : Fin::none;
  connection.window_scaling = info.tcpi_options & TCPI_OPT_WSCALE;
  connection.sack = info.tcpi_options & TCPI_OPT_SACK;
  connection.timestamps = info.tcpi_options & TCPI_OPT_TIMESTAMPS;
  connection.send_scale = info.tcpi_snd_wscale;
  connection.receive_scale = info.tcpi_rcv_wscale;
  connection.received = TRY(peek_received(fd));
  // A closed socket remembers what was never acknowledged, but no longer has it.
  const bool outstanding = info.tcpi_unacked != 0 || info.tcpi_notsent_bytes != 0;
  const auto unacknowledged =
      tcp_state == closed || !outstanding ? 0 : static_cast<std::size_t>(TRY(queued(fd, SIOCOUTQ)));
  const std::size_t data = unacknowledged - (connection.our_fin == Fin::queued ? 1 : 0);
  connection.our_fin_sent = connection.our_fin == Fin::queued && info.tcpi_notsent_bytes == 0;
  connection.in_flight = static_cast<std::uint32_t>(
      std::min(data, unacknowledged - std::min<std::size_t>(unacknowledged, info.tcpi_notsent_bytes)));

  TRY(repair(fd, TCP_REPAIR_ON));
  auto read = read_repaired(fd, connection, unacknowledged);
  TRY(repair(fd, TCP_REPAIR_OFF_NO_WP));
  // Leaving repair mode forgets it.
  if (reuse_address) TRY(set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  TRY(std::move(read));
  if (state_of(fd) != tcp_state) return fail(ErrorKind::busy, "a FIN or a reset came in by loopback just now");
  return connection;
}

}  // namespace

Result<Connection> read_connection(int fd, const tcp_info& info, bool reuse_address) {
  // Within a frozen pod nobody writes, but its kernel may still send by loopback what waits.
  constexpr int tries = 10;
  auto connection = read_once(fd, info, reuse_address);
  for (int i = 1; !connection && connection.error().kind == ErrorKind::busy && i < tries; ++i)
    connection = read_once(fd, TRY(info_of(fd)), reuse_address);
  return connection;
}

/// The acknowledgement of a FIN that we inject goes out; where the peer is one of the pod's that is not built yet, or
/// one that its program has closed, the kernel answers it by a reset. A filter keeps that away.
Result<void> ignore_resets(int fd) {
  constexpr std::uint32_t flags_offset = 13, flag_reset = 0x04, accept_all = ~0u;
  std::array<sock_filter, 4> code{{{BPF_LD | BPF_B | BPF_ABS, 0, 0, flags_offset},
                                   {BPF_JMP | BPF_JSET | BPF_K, 0, 1, flag_reset},
                                   {BPF_RET | BPF_K, 0, 0, 0},
                                   {BPF_RET | BPF_K, 0, 0, accept_all}}};
  const sock_fprog program{.len = static_cast<unsigned short>(code.size()), .filter = code.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) != 0)
    return fail_errno("keep resets from a connection");
  return {};
}

Result<void> heed_resets(int fd) {
  const int unused = 0;
  if (::setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused)) != 0)
    return fail_errno("let resets reach a connection");
  return {};
}

bool ignores_resets(const Connection& connection) {
  return connection.their_fin || connection.our_fin == Fin::acknowledged;
}

Result<void> rebuild_connection(int fd, const SocketAddress& local, const SocketAddress& remote,
                                const Connection& connection, Destination& destination) {
  if (connection.received.size() > queue_limit || connection.sending.size() > queue_limit ||
      connection.in_flight > connection.sending.size())
    return fail(ErrorKind::invalid, "a connection with {} bytes received, {} to send and {} of these sent",
                connection.received.size(), connection.sending.size(), connection.in_flight);
  const bool fin_acknowledged = connection.our_fin == Fin::acknowledged;
  const std::uint32_t first = connection.send_sequence - (fin_acknowledged ? 1 : 0);
  TRY(set_sequence(fd, send_queue, first));
  TRY(set_sequence(fd, receive_queue, connection.receive_sequence));
  // The segment size is computed when connecting, and not again when what was negotiated is set after it.
  constexpr std::uint32_t max_segment_limit = 32767;
  TRY(set_int_option(fd, IPPROTO_TCP, TCP_MAXSEG, static_cast<int>(std::min(connection.mss, max_segment_limit))));
  if (::connect(fd, remote.get(), remote.length) != 0)
    return fail_errno("reconnect to {}", describe(inet_address(remote)));
  TRY(set_int_option(fd, IPPROTO_TCP, TCP_MAXSEG, 0));
  TRY(set_options(fd, connection));
  if (!connection.received.empty()) {
    TRY(ensure_receive_buffer(fd, connection.received.size()));
    TRY(fill(fd, connection.received));
  }
  const std::uint32_t received_to =
      connection.receive_sequence + static_cast<std::uint32_t>(connection.received.size());
  if (ignores_resets(connection)) TRY(ignore_resets(fd));
  // Its window is shut, so that taking it in lets nothing out; the exact one is set last.
  const PacketInjector::Segment segment{.sequence = received_to, .acknowledged = connection.send_sequence};
  PacketInjector::Segment fin = segment;
  fin.fin = true;
  if (connection.their_fin && connection.their_fin_first) {
    TRY(inject(local, remote, fin, destination));
    TRY(await_state(fd, close_wait));
    // Sent again it is acknowledged at once: a delayed acknowledgement would go out when resets are heeded.
    TRY(inject(local, remote, fin, destination));
  }
  if (fin_acknowledged) {
    TRY(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, send_queue));
    if (::shutdown(fd, SHUT_WR) != 0) return fail_errno("shut the sending side");
    TRY(inject(local, remote, segment, destination));
    TRY(await_state(fd, fin_wait2));
  }
  TRY(fill_send_queue(fd, connection));
  if (connection.their_fin && !connection.their_fin_first) {
    TRY(inject(local, remote, fin, destination));
    TRY(await_state(fd, closing));
  }
  TRY(set_window(fd, connection));
  if (connection.receive_shut && ::shutdown(fd, SHUT_RD) != 0) return fail_errno("shut the receiving side");
  return {};
}

namespace {

/// Waits until `events` are there: loopback is fast, unless its work has been put off to a thread.
Result<void> await_events(int fd, short events, std::string_view what) {
  constexpr int patience_ms = 1'000;
  pollfd entry{.fd = fd, .events = events, .revents = 0};
  if (::poll(&entry, 1, patience_ms) > 0 && (entry.revents & (events | POLLERR)) == events) return {};
  return fail(ErrorKind::failed, "{}: no answer within the pod", what);
}

Result<void> make_waiting(const Waiting& waiting, int client) {
  const auto remote = TRY(socket_address(waiting.family, waiting.remote));
  if (::connect(client, remote.get(), remote.length) != 0 && errno != EINPROGRESS)
    return fail_errno("connect to {} again", describe(waiting.remote));
  TRY(await_events(client, POLLOUT, "connect again"));
  TRY(ensure_send_buffer(client, waiting.sent.size()));
  BytesView left(waiting.sent);
  while (!left.empty()) {
    const ssize_t count = ::send(client, left.data(), left.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN) return fail_errno("send {} bytes again", left.size());
    if (count < 0) TRY(await_events(client, POLLOUT, "send again"));
    if (count > 0) left = left.subspan(static_cast<std::size_t>(count));
  }
  if (waiting.fin && ::shutdown(client, SHUT_WR) != 0) return fail_errno("shut the sending side");
  return {};
}

}  // namespace

Result<void> connect_waiting(const Waiting& waiting, int client) {
  const int flags = ::fcntl(client, F_GETFL);
  if (flags < 0) return fail_errno("find who waits to be accepted");
  ::fcntl(client, F_SETFL, flags | O_NONBLOCK);
  auto made = make_waiting(waiting, client);
  ::fcntl(client, F_SETFL, flags);
  return made;
}

Result<void> reset_connection(int fd, const SocketAddress& local, const SocketAddress& remote,
                              std::uint32_t receive_sequence, Destination& destination) {
  TRY(inject(local, remote, {.sequence = receive_sequence, .reset = true, .ack = false}, destination));
  return await_state(fd, closed);
}

Result<void> refuse_connection(int fd, const SocketAddress& local, const SocketAddress& remote,
                               std::uint32_t initial_sequence, Destination& destination) {
  TRY(inject(local, remote, {.acknowledged = initial_sequence + 1, .reset = true}, destination));
  return await_state(fd, closed);
}

}  // namespace godwit::objects::tcp
