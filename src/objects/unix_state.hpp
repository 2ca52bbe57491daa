#pragma once

#include <functional>
#include <utility>

#include "objects/socket_options.hpp"

/// Unix sockets as data, and how they are named and rebuilt. unix.cpp is the kind.
namespace godwit::objects::local {

inline constexpr std::size_t queue_limit = 64 * MiB;

/// Who somebody is to SO_PEERCRED and SCM_CREDENTIALS.
struct Credentials {
  PodPid pid;  ///< 0: not of this pod
  std::uint32_t uid = 0, gid = 0;
  MSGPACK_DEFINE_MAP(pid, uid, gid)
};

/// The name of a socket: what getsockname shows, and the file that leads to it.
struct Name {
  Bytes text;                                ///< as in sun_path: a path, or zero and an abstract name; empty: none
  std::string directory;                     ///< where a relative path begins
  bool linked = false;                       ///< the path leads to this very socket
  std::uint32_t mode = 0, uid = 0, gid = 0;  ///< of the file, when linked
  MSGPACK_DEFINE_MAP(text, directory, linked, mode, uid, gid)
  [[nodiscard]] bool empty() const { return text.empty(); }
  [[nodiscard]] bool abstract() const { return !text.empty() && text[0] == 0; }
};

/// Something queued: a datagram or record, or a piece of a stream.
struct Message {
  Bytes payload;
  Bytes from;                            ///< the sender's name; datagrams only
  std::vector<Credentials> credentials;  ///< one when the receiver has asked for them, else none
  std::uint32_t read = 0;  ///< streams: bytes before `payload` that have been read; the whole fills the sender's buffer
  MSGPACK_DEFINE_MAP(payload, from, credentials, read)
};

enum class Phase : std::uint8_t {
  unconnected,
  listening,
  pending,    ///< connected to a listening socket that has not accepted it
  connected,  ///< to another of the pod's; datagram sockets: it is the default destination
  alone,      ///< the other end has gone
};

inline constexpr std::uint32_t nobody = ~0u;

struct State {
  ObjectId id = 0;
  int type = 0;
  Phase phase = Phase::unconnected;
  Name name;
  Name peer_name;
  ObjectId peer = nobody;  ///< connected
  bool mutual = false;     ///< the peer is connected to this one, too; always so for streams
  bool accepted = false;   ///< of a named stream: this end came from accept
  int backlog = 0;
  std::vector<ObjectId> waiting;                   ///< listening: who waits to be accepted, in order
  std::vector<Credentials> waiting_as;             ///< and who made these
  std::vector<std::vector<Message>> waiting_sent;  ///< and what these have sent already
  Credentials own, other;                          ///< what the peer's SO_PEERCRED and ours show
  std::vector<Message> queue;
  int shutdown = 0;    ///< SHUT_RD + 1 and SHUT_WR + 1 as bits: 1 receiving, 2 sending
  bool reset = false;  ///< alone: ECONNRESET is pending
  SocketOptions options;
  MSGPACK_DEFINE_MAP(id, type, phase, name, peer_name, peer, mutual, accepted, backlog, waiting, waiting_as,
                     waiting_sent, own, other, queue, shutdown, reset, options)
};

/// "path" or "@abstract": for people.
[[nodiscard]] std::string describe(const Name&);
Result<SocketAddress> address_of(const Name&);
/// The address that leads to it from any working directory.
Result<SocketAddress> absolute_address_of(const Name&);

/// Binds the socket to its name. A path that was its own leads to it again, with the mode and owner it had; one that
/// was not leads to it only as long as the returned object lives, and then to what it led to before.
class Binding {
 public:
  Binding() = default;
  Binding(Binding&& other) noexcept : undo_(std::exchange(other.undo_, nullptr)) {}
  Binding& operator=(Binding&& other) noexcept {
    std::swap(undo_, other.undo_);
    return *this;
  }
  ~Binding() {
    if (undo_) undo_();
  }

 private:
  friend Result<Binding> bind_name(int fd, const Name&, bool keep);
  std::function<void()> undo_;
};
Result<Binding> bind_name(int fd, const Name&, bool keep);
Result<void> connect_name(int fd, const Name&);

/// For its lifetime the calling thread makes sockets as this user: SO_PEERCRED shows it. The process shown is ours,
/// which is none in the pod: for what was made by a process that is no more.
class ActAs {
 public:
  explicit ActAs(const Credentials&);
  ~ActAs();
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;
};

/// As somebody of the pod: SO_PEERCRED shows the others who it was.
struct Pair {
  Fd mine, other;
};
Result<Pair> new_pair(int type, const Credentials& as, Destination&);
Result<void> listen_as(int fd, const Name&, int backlog, const Credentials& as, Destination&);
Result<void> connect_as(int fd, const Name&, const Credentials& as, Destination&);

Result<Fd> rebuild(const State&, Destination&);

}  // namespace godwit::objects::local

MSGPACK_ADD_ENUM(godwit::objects::local::Phase);
