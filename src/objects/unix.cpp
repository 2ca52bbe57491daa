#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>

#include <cstring>
#include <unordered_map>

#include "kernel/kernel_state.hpp"
#include "kernel/procfs.hpp"
#include "kernel/sock_diag.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"
#include "objects/unix_state.hpp"

/// Unix sockets: stream, datagram and sequenced packet, within the pod.
namespace godwit::objects {
namespace local {
namespace {

constexpr int state_listening = 10;
constexpr long overlay_magic = 0x794c7630;

bool matches(const Descriptor& descriptor) {
  return socket_class(descriptor).domain == AF_UNIX;
}

/// All Unix sockets of the pod's network namespace, and which are the pod's descriptors.
struct Table {
  bool read = false;
  std::unordered_map<std::uint32_t, kernel::UnixSocket> sockets;
  std::unordered_map<std::uint32_t, ObjectId> objects;
  std::unordered_map<std::uint32_t, std::uint32_t> waiting;  ///< a client, and whom it waits for
};

Result<const Table*> table_of(const Descriptor& descriptor, Source& source, const std::string& key) {
  auto& table = source.shared<Table>(key);
  if (table.read) return &table;
  const Fd diag = TRY(kernel::open_sock_diag(descriptor.fd));
  for (auto& socket : TRY(kernel::unix_sockets(diag.get()))) {
    for (const auto client : socket.pending)
      if (client != 0) table.waiting[client] = socket.inode;
    table.sockets.emplace(socket.inode, std::move(socket));
  }
  for (const auto& each : source.descriptors())
    if (S_ISSOCK(each.status.st_mode)) table.objects.emplace(static_cast<std::uint32_t>(each.status.st_ino), each.id);
  table.read = true;
  return &table;
}

Result<const kernel::UnixSocket*> find_socket(const Descriptor& descriptor, const Table& table) {
  const auto found = table.sockets.find(static_cast<std::uint32_t>(descriptor.status.st_ino));
  if (found == table.sockets.end())
    return fail(ErrorKind::refused, "{}: this Unix socket belongs to another network namespace than the pod's",
                describe(descriptor));
  return &found->second;
}

/// The pod's socket at the other end; nobody when there is none.
Result<ObjectId> find_peer(const Descriptor& descriptor, const kernel::UnixSocket& socket, const Table& table) {
  if (socket.peer == 0) return nobody;
  const auto found = table.objects.find(socket.peer);
  if (found != table.objects.end()) return found->second;
  return fail(ErrorKind::refused, "{}: this Unix socket is connected to something outside the pod{}",
              describe(descriptor), table.sockets.contains(socket.peer) ? " (or to a descriptor on its way)" : "");
}

Credentials credentials_of(const ucred& credentials, Source& source) {
  const auto pid = source.pod_pid(HostPid{credentials.pid});
  return {pid.value_or(PodPid{}), credentials.uid, credentials.gid};
}

Credentials peer_credentials(int fd, Source& source) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return {};
  return credentials_of(credentials, source);
}

Bytes name_of(const SocketAddress& address) {
  const auto& local = reinterpret_cast<const sockaddr_un&>(address.storage);
  if (address.length <= offsetof(sockaddr_un, sun_path)) return {};
  const auto* text = reinterpret_cast<const std::uint8_t*>(local.sun_path);
  std::size_t length = address.length - offsetof(sockaddr_un, sun_path);
  // Paths come with a zero at their end; abstract names may have zeros in them.
  if (text[0] != 0) length = ::strnlen(local.sun_path, length);
  return Bytes(text, text + length);
}

/// Whether the path leads to this socket, seen with the eyes of a process that holds it.
Result<void> look_up(const Descriptor& descriptor, const kernel::UnixSocket& socket, Source& source, Name& name) {
  if (name.empty() || name.abstract() || !socket.bound_inode) return {};
  const std::string path(name.text.begin(), name.text.end());
  for (const auto& holder : descriptor.holders) {
    const auto process = source.host_pid(holder.process);
    if (!process) continue;
    const std::string seen = fmt::format("{}/{}/{}", process->value, path[0] == '/' ? "root" : "cwd", path);
    if (path[0] != '/') name.directory = TRY(kernel::read_link(*process, "cwd"));
    struct stat status {};
    if (::fstatat(kernel::proc_directory(), seen.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISSOCK(status.st_mode))
      continue;
    // An overlay shows other inode numbers than it uses inside.
    const Fd directory(
        ::openat(kernel::proc_directory(), seen.substr(0, seen.rfind('/')).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    struct statfs system {};
    const bool overlay = directory && ::fstatfs(directory.get(), &system) == 0 && system.f_type == overlay_magic;
    if (static_cast<std::uint32_t>(status.st_ino) != *socket.bound_inode && !overlay) continue;
    name.linked = true;
    name.mode = status.st_mode;
    name.uid = status.st_uid;
    name.gid = status.st_gid;
    return {};
  }
  if (path[0] != '/')
    return fail(ErrorKind::refused, "{}: the file of a Unix socket with the relative name {} can't be found",
                describe(descriptor), describe(name));
  return {};
}

/// One message from the queue at the offset that the socket stands at; nullopt when no more is there.
Result<std::optional<Message>> peek_message(const Descriptor& descriptor, Bytes& buffer, bool& cut, Source& source) {
  SocketAddress from;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(253 * sizeof(int)) + 1024> control;
  iovec part{buffer.data(), buffer.size()};
  msghdr message{.msg_name = from.get(),
                 .msg_namelen = sizeof(from.storage),
                 .msg_iov = &part,
                 .msg_iovlen = 1,
                 .msg_control = control.data(),
                 .msg_controllen = control.size()};
  const ssize_t count = ::recvmsg(descriptor.fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return std::nullopt;
  if (count < 0) return fail_errno("{}: peek a message", describe(descriptor));
  cut = message.msg_flags & MSG_TRUNC;
  Message result;
  bool descriptors = false;
  for (auto* each = CMSG_FIRSTHDR(&message); each != nullptr; each = CMSG_NXTHDR(&message, each)) {
    if (each->cmsg_level != SOL_SOCKET) continue;
    if (each->cmsg_type == SCM_RIGHTS) {
      for (std::size_t at = 0; at + sizeof(int) <= each->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
        int received = -1;
        std::memcpy(&received, CMSG_DATA(each) + at, sizeof(int));
        ::close(received);
      }
      descriptors = true;
    } else if (each->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials{};
      std::memcpy(&credentials, CMSG_DATA(each), sizeof(credentials));
      result.credentials = {credentials_of(credentials, source)};
    }
  }
  if (descriptors)
    return fail(ErrorKind::refused, "{}: descriptors (SCM_RIGHTS) are queued in this Unix socket",
                describe(descriptor));
  result.payload.assign(buffer.begin(), buffer.begin() + count);
  from.length = message.msg_namelen;
  result.from = name_of(from);
  return result;
}

/// Peeking with an offset goes from message to message; empty ones may be missed.
Result<std::vector<Message>> peek_queue(const Descriptor& descriptor, int type, int events, Source& source) {
  int bytes = 0;
  if (::ioctl(descriptor.fd, SIOCINQ, &bytes) != 0) return fail_errno("read the length of a queue");
  const auto total = static_cast<std::size_t>(bytes);
  if (total > queue_limit)
    return fail(ErrorKind::refused, "{}: {} bytes of queued data are over the limit", describe(descriptor), total);
  // The length of a queue of datagrams is that of the first.
  const bool whole = type != SOCK_DGRAM;
  Bytes buffer(std::max<std::size_t>(whole ? total : 0, 64 * KiB));
  std::vector<Message> queue;
  std::size_t seen = 0;
  for (;;) {
    // What is asked for past the end would take a pending error away.
    if (whole && seen == total && ((events & POLLERR) || type == SOCK_STREAM)) return queue;
    bool cut = false;
    auto message = TRY(peek_message(descriptor, buffer, cut, source));
    if (!message) return queue;
    // At the end of a shut connection an empty record can't be told from the end.
    if (type == SOCK_SEQPACKET && (events & POLLRDHUP) && message->payload.empty() && seen == total) return queue;
    if (cut) {
      if (buffer.size() > queue_limit)
        return fail(ErrorKind::refused, "{}: a queued datagram is over the limit", describe(descriptor));
      buffer.resize(buffer.size() * 4);
      queue.clear();
      seen = 0;
      TRY(set_int_option(descriptor.fd, SOL_SOCKET, SO_PEEK_OFF, 0));
      continue;
    }
    if (type == SOCK_STREAM && message->payload.empty()) return queue;
    seen += message->payload.size();
    if (seen > queue_limit)
      return fail(ErrorKind::refused, "{}: {} bytes of queued data are over the limit", describe(descriptor), seen);
    queue.push_back(std::move(*message));
  }
}

Result<std::vector<Message>> read_queue(const Descriptor& descriptor, int type, int events, Source& source) {
  if ((events & POLLIN) == 0) return std::vector<Message>{};
  const int offset = int_option(descriptor.fd, SOL_SOCKET, SO_PEEK_OFF, -1);
  TRY(set_int_option(descriptor.fd, SOL_SOCKET, SO_PEEK_OFF, 0));
  auto queue = peek_queue(descriptor, type, events, source);
  TRY(set_int_option(descriptor.fd, SOL_SOCKET, SO_PEEK_OFF, offset));
  return queue;
}

/// An empty message is shown once to whoever peeks with an offset: by now the program may have done so, or a capture
/// that was given up. Those that are missing are found in the queue itself, where the kernel can be read.
void add_empty(const Descriptor& descriptor, std::vector<Message>& queue) {
  auto messages = kernel::unix_messages(descriptor.fd);
  if (!messages || messages->size() <= queue.size()) return;
  std::vector<Message> whole;
  auto known = queue.begin();
  for (auto& message : *messages) {
    if (message.size != 0 && (known == queue.end() || known->payload.size() != message.size)) return;
    const bool shown = known != queue.end() && known->payload.size() == message.size;
    whole.push_back(shown ? std::move(*known++) : Message{});
    // Which of several empty ones was shown can't be told.
    if (message.size == 0) whole.back().from = std::move(message.sender);
  }
  queue = std::move(whole);
}

/// Cuts what is queued where one write ended and the next began: by these pieces the sender's buffer is filled. Where
/// the kernel can't be read it stays whole, and takes a little less of it.
void cut_stream(const Descriptor& descriptor, std::vector<Message>& queue) {
  if (queue.empty()) return;
  const auto pieces = kernel::unix_stream_pieces(descriptor.fd);
  if (!pieces) return;
  std::vector<Message> cut;
  auto message = queue.begin();
  std::size_t at = 0;
  for (const auto& piece : *pieces) {
    if (piece.read >= piece.size) continue;
    const std::size_t size = piece.size - piece.read;
    if (message == queue.end() || size > message->payload.size() - at) return;
    const auto begin = message->payload.begin() + static_cast<std::ptrdiff_t>(at);
    cut.push_back({Bytes(begin, begin + static_cast<std::ptrdiff_t>(size)), {}, message->credentials, piece.read});
    at += size;
    if (at < message->payload.size()) continue;
    ++message;
    at = 0;
  }
  if (message == queue.end()) queue = std::move(cut);
}

/// What those that wait to be accepted have sent already.
Result<void> capture_sent(const Descriptor& descriptor, State& state) {
  auto pending = kernel::pending_unix_connections(descriptor.fd);
  if (!pending || pending->size() != state.waiting.size())
    return fail(ErrorKind::busy, "{}: a connection to {} is not accepted yet and has brought data{}",
                describe(descriptor), describe(state.name), pending ? "" : " (" + pending.error().message() + ")");
  for (std::size_t i = 0; i < pending->size(); ++i) {
    if ((*pending)[i].descriptors)
      return fail(ErrorKind::busy, "{}: a connection to {} is not accepted yet and has brought descriptors",
                  describe(descriptor), describe(state.name));
    for (auto& piece : (*pending)[i].received)
      state.waiting_sent[i].push_back({std::move(piece), {}, {state.waiting_as[i]}});
  }
  return {};
}

Result<void> capture_listener(const Descriptor& descriptor, const kernel::UnixSocket& socket, const Table& table,
                              Source& source, State& state) {
  state.phase = Phase::listening;
  state.backlog = static_cast<int>(socket.send_queue);
  state.own = peer_credentials(descriptor.fd, source);
  bool data = false;
  for (const auto client : socket.pending) {
    const auto found = table.objects.find(client);
    if (client == 0 || found == table.objects.end())
      return fail(ErrorKind::busy, "{}: a connection to {} is not accepted yet and its client has gone",
                  describe(descriptor), describe(state.name));
    int unread = 0;
    ::ioctl(source.descriptors()[found->second].fd, SIOCOUTQ, &unread);
    data = data || unread != 0;
    if (!state.name.abstract() && !state.name.linked)
      return fail(ErrorKind::busy, "{}: a connection is not accepted yet, and no path leads to {} any more",
                  describe(descriptor), describe(state.name));
    const auto& waiting = source.descriptors()[found->second];
    const PodPid process = waiting.holders.empty() ? PodPid{} : waiting.holders.front().process;
    state.waiting.push_back(found->second);
    state.waiting_as.push_back({process, waiting.status.st_uid, waiting.status.st_gid});
  }
  state.waiting_sent.resize(state.waiting.size());
  if (!data) return {};
  return capture_sent(descriptor, state);
}

Result<void> capture_peer(const Descriptor& descriptor, const kernel::UnixSocket& socket, const Table& table,
                          Source& source, State& state) {
  const auto peer_name = peer_address(descriptor.fd);
  if (!peer_name) return {};
  state.peer_name.text = name_of(*peer_name);
  state.other = peer_credentials(descriptor.fd, source);
  if (table.waiting.contains(socket.inode)) {
    state.phase = Phase::pending;
    return {};
  }
  state.peer = TRY(find_peer(descriptor, socket, table));
  state.phase = state.peer == nobody ? Phase::alone : Phase::connected;
  if (state.peer != nobody) {
    const auto& peer = source.descriptors()[state.peer];
    const auto* other = TRY(find_socket(peer, table));
    state.mutual = other->peer == socket.inode;
    state.own = peer_credentials(peer.fd, source);
    TRY(look_up(peer, *other, source, state.peer_name));
    if (state.type == SOCK_DGRAM && !state.mutual && !state.peer_name.abstract() && !state.peer_name.linked)
      return fail(ErrorKind::refused, "{}: this Unix datagram socket is connected to one that no name leads to",
                  describe(descriptor));
  }
  if (state.name.empty() == state.peer_name.empty()) {
    for (const auto& [inode, each] : table.sockets)
      if (each.state == state_listening && !state.name.empty() && each.name == socket.name) state.accepted = true;
  } else {
    state.accepted = !state.name.empty();
  }
  return {};
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  const int fd = descriptor.fd;
  const Table& table = *TRY(table_of(descriptor, source, "unix sockets"));
  const auto& socket = *TRY(find_socket(descriptor, table));
  State state;
  state.id = descriptor.id;
  state.type = socket.type;
  state.name.text = name_of(TRY(local_address(fd)));
  state.options = TRY(read_socket_options(descriptor, option_unix));
  pollfd entry{.fd = fd, .events = POLLIN | POLLPRI | POLLRDHUP, .revents = 0};
  ::poll(&entry, 1, 0);
  if (entry.revents & POLLPRI) return fail(ErrorKind::busy, "{}: out-of-band data is unread", describe(descriptor));
  TRY(look_up(descriptor, socket, source, state.name));
  if (socket.state == state_listening) {
    TRY(capture_listener(descriptor, socket, table, source, state));
    return state;
  }
  TRY(capture_peer(descriptor, socket, table, source, state));
  state.reset = (entry.revents & POLLERR) && state.phase == Phase::alone && state.type != SOCK_DGRAM;
  if ((entry.revents & POLLERR) && !state.reset)
    return fail(ErrorKind::busy, "{}: an error is unread", describe(descriptor));
  state.shutdown = socket.shutdown;
  state.queue = TRY(read_queue(descriptor, state.type, entry.revents, source));
  if (state.type == SOCK_STREAM) cut_stream(descriptor, state.queue);
  if (state.type != SOCK_STREAM && (entry.revents & POLLIN) != 0) add_empty(descriptor, state.queue);
  return state;
}

/// What is connected to another network namespace. All that may change until the freeze is left to capture.
Result<void> preflight(const Descriptor& descriptor, Source& source) {
  const Table& table = *TRY(table_of(descriptor, source, "unix sockets, preflight"));
  const auto& socket = *TRY(find_socket(descriptor, table));
  if (socket.peer != 0 && !table.sockets.contains(socket.peer)) TRY(find_peer(descriptor, socket, table));
  kernel::prepare_to_read_kernel_state();
  return check_socket_options(descriptor);
}

}  // namespace
}  // namespace local

const Kind unix_kind{.name = "unix",
                     .matches = local::matches,
                     .preflight = local::preflight,
                     .capture = captures<local::State, local::capture>,
                     .build = builds<local::State, local::rebuild>,
                     .attach = nothing_to_attach,
                     .open = nothing_to_open};

}  // namespace godwit::objects
