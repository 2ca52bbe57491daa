#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "objects/unix_state.hpp"

namespace godwit::objects::local {
namespace {

/// What the rebuilds of one pod's Unix sockets know of each other.
struct World {
  std::map<ObjectId, Fd> made;                     ///< the end of a pair whose turn has not come yet
  std::map<ObjectId, int> shutdown;                ///< of an end that was built first: when both are full
  std::map<Bytes, ObjectId> listeners, receivers;  ///< by abstract name, built
  std::multimap<ObjectId, ObjectId> connect;       ///< to a datagram socket that is not built yet: who
};

World& world_of(Destination& destination) {
  return destination.shared<World>("unix sockets");
}

Result<Fd> new_socket(int type) {
  Fd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!socket) return fail_errno("make a Unix socket");
  return socket;
}

SocketClass class_of(const State& state) {
  return {AF_UNIX, state.type, 0};
}

/// A listening socket of this name for one connection: the pod's own where the name is taken by it, else one that goes
/// when `connect_named` is done.
Result<Fd> temporary_listener(const State& state, const Name& name, const Credentials& as, Binding& binding,
                              Destination& destination) {
  const auto& listeners = world_of(destination).listeners;
  if (const auto known = listeners.find(name.text); name.abstract() && known != listeners.end()) {
    Fd same(::fcntl(destination.built(known->second), F_DUPFD_CLOEXEC, 0));
    if (!same) return fail_errno("use the socket that listens on {}", describe(name));
    return same;
  }
  Fd listener = TRY(new_socket(state.type));
  binding = TRY(bind_name(listener.get(), name, false));
  TRY(listen_as(listener.get(), name, 1, as, destination));
  return listener;
}

/// Connects two stream sockets of which one at least has a name, the way they once were: by connect and accept.
Result<Pair> connect_named(const State& state, Destination& destination) {
  const Name& server_name = state.accepted ? state.name : state.peer_name;
  const Name& client_name = state.accepted ? state.peer_name : state.name;
  const Credentials& server_as = state.accepted ? state.own : state.other;
  const Credentials& client_as = state.accepted ? state.other : state.own;
  Binding listening, calling;
  const Fd listener = TRY(temporary_listener(state, server_name, server_as, listening, destination));
  Fd client = TRY(new_socket(state.type));
  if (!client_name.empty()) calling = TRY(bind_name(client.get(), client_name, client_name.linked));
  TRY(connect_as(client.get(), server_name, client_as, destination));
  Fd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!server) return fail_errno("accept a connection to {}", describe(server_name));
  if (state.accepted) return Pair{std::move(server), std::move(client)};
  return Pair{std::move(client), std::move(server)};
}

Result<void> send_message(int fd, const Message& message, bool datagram, Destination& destination) {
  Bytes whole;
  if (message.read != 0) {
    whole.resize(message.read);
    whole.insert(whole.end(), message.payload.begin(), message.payload.end());
  }
  BytesView left(message.read != 0 ? whole : message.payload);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred))> control{};
  do {
    iovec part{const_cast<std::uint8_t*>(left.data()), datagram ? left.size() : std::min(left.size(), 256 * KiB)};
    msghdr header{.msg_iov = &part, .msg_iovlen = 1};
    if (!message.credentials.empty()) {
      const auto& as = message.credentials.front();
      const auto process = destination.host_pid(as.pid);
      const ucred credentials{process ? process->value : ::getpid(), as.uid, as.gid};
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      auto* entry = CMSG_FIRSTHDR(&header);
      entry->cmsg_level = SOL_SOCKET;
      entry->cmsg_type = SCM_CREDENTIALS;
      entry->cmsg_len = CMSG_LEN(sizeof(credentials));
      std::memcpy(CMSG_DATA(entry), &credentials, sizeof(credentials));
    }
    const ssize_t count = ::sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) return fail_errno("fill a Unix socket's queue ({} bytes left)", left.size());
    left = left.subspan(static_cast<std::size_t>(count));
  } while (!left.empty());
  return {};
}

/// Fills the queue of the socket that `sender` is connected to. What is queued counts against the sender's buffer,
/// which is made large enough for as long as that takes.
Result<void> fill_from(int sender, const std::vector<Message>& queue, bool datagram, Destination& destination) {
  if (queue.empty()) return {};
  std::size_t total = 0;
  for (const auto& message : queue) total += 2 * (message.read + message.payload.size()) + 4 * KiB;
  const int before = int_option(sender, SOL_SOCKET, SO_SNDBUF), lock = int_option(sender, SOL_SOCKET, SO_BUF_LOCK);
  TRY(ensure_send_buffer(sender, total));
  for (const auto& message : queue) TRY(send_message(sender, message, datagram, destination));
  TRY(set_int_option(sender, SOL_SOCKET, SO_SNDBUFFORCE, before / 2));
  return set_int_option(sender, SOL_SOCKET, SO_BUF_LOCK, lock);
}

/// What had been read of the first piece of a stream's queue is read again.
Result<void> read_again(int fd, const std::vector<Message>& queue) {
  if (queue.empty() || queue.front().read == 0) return {};
  Bytes away(queue.front().read);
  const ssize_t count = ::recv(fd, away.data(), away.size(), MSG_DONTWAIT);
  if (count != static_cast<ssize_t>(away.size())) return fail_errno("read {} bytes of a queue again", away.size());
  return {};
}

/// Datagrams from senders that are not connected to the receiver: sockets of the same names send them, and go.
Result<void> fill_by_name(const State& state, Destination& destination) {
  for (const auto& message : state.queue) {
    const auto& receivers = world_of(destination).receivers;
    Name from;
    from.text = message.from;
    Fd sender;
    Binding binding;
    if (const auto known = receivers.find(from.text); from.abstract() && known != receivers.end())
      sender.reset(::fcntl(destination.built(known->second), F_DUPFD_CLOEXEC, 0));
    if (!sender) {
      sender = TRY(new_socket(SOCK_DGRAM));
      // The receiver is shown the text only; a relative one can be bound anywhere for the moment.
      if (!from.empty() && !from.abstract() && from.text[0] != '/')
        from.directory = state.name.directory.empty() ? "/" : state.name.directory;
      binding = TRY(bind_name(sender.get(), from, false));
      TRY(connect_name(sender.get(), state.name));
      TRY(fill_from(sender.get(), {message}, true, destination));
      continue;
    }
    const auto to = TRY(address_of(state.name));
    if (::sendto(sender.get(), message.payload.data(), message.payload.size(), MSG_DONTWAIT | MSG_NOSIGNAL, to.get(),
                 to.length) < 0)
      return fail_errno("fill the queue of {}", describe(state.name));
  }
  return {};
}

Result<void> shut(int fd, int bits) {
  if (bits == 0) return {};
  if (::shutdown(fd, bits == 3 ? SHUT_RDWR : bits == 1 ? SHUT_RD : SHUT_WR) != 0)
    return fail_errno("shut down a Unix socket");
  return {};
}

/// Both ends exist after the first one's turn; the second one finds its own in the world.
Result<Fd> rebuild_connected(const State& state, Destination& destination) {
  auto& world = world_of(destination);
  const bool datagram = state.type == SOCK_DGRAM;
  const int built = destination.built(state.peer);
  Fd mine;
  int other = built;
  if (const auto ready = world.made.find(state.id); ready != world.made.end()) {
    mine = std::move(ready->second);
    world.made.erase(ready);
  } else {
    const bool named = !state.name.empty() || !state.peer_name.empty();
    Pair pair = named && !datagram ? TRY(connect_named(state, destination))
                                   : TRY(new_pair(state.type, state.other, destination));
    mine = std::move(pair.mine);
    other = pair.other.get();
    if (state.peer != nobody) world.made[state.peer] = std::move(pair.other);
  }
  if (other < 0) return fail(ErrorKind::invalid, "the other end of a Unix socket is missing");
  TRY(write_socket_options(mine.get(), class_of(state), state.options, OptionStage::early, destination));
  Binding binding;
  if (datagram && !state.name.empty()) binding = TRY(bind_name(mine.get(), state.name, state.name.linked));
  TRY(fill_from(other, state.queue, state.type != SOCK_STREAM, destination));
  TRY(read_again(mine.get(), state.queue));
  const auto first = world.shutdown.find(state.peer);
  if (first == world.shutdown.end()) {
    world.shutdown[state.id] = state.shutdown;
  } else {
    TRY(shut(mine.get(), state.shutdown));
    if (datagram) TRY(shut(other, first->second));
  }
  return mine;
}

/// The other end is there for as long as it takes to fill the queue.
Result<Fd> rebuild_alone(const State& state, Destination& destination) {
  const bool datagram = state.type == SOCK_DGRAM;
  const bool named = !state.name.empty() || !state.peer_name.empty();
  Pair pair =
      named && !datagram ? TRY(connect_named(state, destination)) : TRY(new_pair(state.type, state.other, destination));
  TRY(write_socket_options(pair.mine.get(), class_of(state), state.options, OptionStage::early, destination));
  Binding own, peer;
  if (datagram && !state.name.empty()) own = TRY(bind_name(pair.mine.get(), state.name, state.name.linked));
  if (datagram && !state.peer_name.empty()) peer = TRY(bind_name(pair.other.get(), state.peer_name, false));
  TRY(fill_from(pair.other.get(), state.queue, state.type != SOCK_STREAM, destination));
  TRY(read_again(pair.mine.get(), state.queue));
  // Whoever goes without having read what it got leaves ECONNRESET behind.
  if (state.reset && ::send(pair.mine.get(), "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
    return fail_errno("reset a Unix socket");
  pair.other.reset();
  if (datagram) TRY(shut(pair.mine.get(), state.shutdown));
  return std::move(pair.mine);
}

/// Those that wait for this datagram socket to be there.
Result<void> connect_others(const State& state, Destination& destination) {
  auto& waiting = world_of(destination).connect;
  const auto [begin, end] = waiting.equal_range(state.id);
  for (auto each = begin; each != end; ++each) TRY(connect_name(destination.built(each->second), state.name));
  waiting.erase(begin, end);
  return {};
}

Result<Fd> rebuild_unconnected(const State& state, Destination& destination) {
  const bool datagram = state.type == SOCK_DGRAM;
  // Nobody could send to it by name: whoever did was once its other end.
  const bool nameless = datagram && state.name.empty() && !state.queue.empty();
  Pair pair;
  if (nameless)
    pair = TRY(new_pair(state.type, state.own, destination));
  else
    pair.mine = TRY(new_socket(state.type));
  const int fd = pair.mine.get();
  TRY(write_socket_options(fd, class_of(state), state.options, OptionStage::early, destination));
  const Binding binding = TRY(bind_name(fd, state.name, state.name.linked));
  if (nameless) {
    TRY(fill_from(pair.other.get(), state.queue, true, destination));
    const sockaddr none{.sa_family = AF_UNSPEC, .sa_data = {}};
    if (::connect(fd, &none, sizeof(none)) != 0) return fail_errno("disconnect a Unix socket");
  } else if (datagram) {
    TRY(fill_by_name(state, destination));
    if (state.name.abstract()) world_of(destination).receivers[state.name.text] = state.id;
  }
  if (state.phase == Phase::listening) {
    TRY(listen_as(fd, state.name, state.backlog, state.own, destination));
    if (state.name.abstract()) world_of(destination).listeners[state.name.text] = state.id;
  }
  if (state.phase == Phase::connected) {
    if (destination.built(state.peer) >= 0)
      TRY(connect_name(fd, state.peer_name));
    else
      world_of(destination).connect.emplace(state.peer, state.id);
  }
  TRY(shut(fd, datagram ? state.shutdown : 0));
  return std::move(pair.mine);
}

/// Connects who waited to be accepted, in order. Everybody else has been connected by then: a listening socket lends
/// its queue to that.
Result<void> connect_waiting(const State& state, Destination& destination) {
  for (std::size_t i = 0; i < state.waiting.size(); ++i) {
    const int client = destination.built(state.waiting[i]);
    const int flags = ::fcntl(client, F_GETFL);
    if (flags < 0) return fail_errno("find who waits to be accepted by {}", describe(state.name));
    ::fcntl(client, F_SETFL, flags | O_NONBLOCK);
    auto connected = connect_as(client, state.name, state.waiting_as[i], destination);
    ::fcntl(client, F_SETFL, flags);
    TRY(std::move(connected));
    TRY(fill_from(client, state.waiting_sent[i], state.type != SOCK_STREAM, destination));
  }
  return {};
}

}  // namespace

Result<Fd> rebuild(const State& state, Destination& destination) {
  if (state.type != SOCK_STREAM && state.type != SOCK_DGRAM && state.type != SOCK_SEQPACKET)
    return fail(ErrorKind::invalid, "a Unix socket of type {}", state.type);
  if (state.shutdown < 0 || state.shutdown > 3)
    return fail(ErrorKind::invalid, "a Unix socket shut down in the way {}", state.shutdown);
  const auto too_long = [](const std::vector<Message>& queue) {
    return std::ranges::any_of(queue, [](const Message& each) { return each.read > queue_limit; });
  };
  if (too_long(state.queue) || std::ranges::any_of(state.waiting_sent, too_long))
    return fail(ErrorKind::invalid, "a piece of a stream over the limit");
  if (state.waiting.size() != state.waiting_as.size() || state.waiting.size() != state.waiting_sent.size())
    return fail(ErrorKind::invalid, "{} waiting connections of {} users with {} queues", state.waiting.size(),
                state.waiting_as.size(), state.waiting_sent.size());
  Fd socket;
  if (state.phase == Phase::alone)
    socket = TRY(rebuild_alone(state, destination));
  else if (state.phase == Phase::connected && state.mutual)
    socket = TRY(rebuild_connected(state, destination));
  else
    socket = TRY(rebuild_unconnected(state, destination));
  if (state.type == SOCK_DGRAM) TRY(connect_others(state, destination));
  if (!state.waiting.empty())
    destination.when_built([state, &destination] { return connect_waiting(state, destination); });
  TRY(write_socket_options(socket.get(), class_of(state), state.options, OptionStage::late, destination));
  return socket;
}

}  // namespace godwit::objects::local
