#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

/// What the kernel knows of sockets and timers and tells by no system call: it is read in the kernel's memory, by a BPF
/// program of a dozen instructions, with the layout that the running kernel publishes (/sys/kernel/btf/vmlinux). Right
/// only while nobody uses the objects looked at. All are ErrorKind::failed where the kernel can't be read (no BTF).
namespace godwit::kernel {

/// What stands in the accept queue of a listening socket. The connections in it have no descriptor, and none can be had
/// without taking them out of the queue for good.
struct PendingConnection {
  std::uint16_t local_port = 0, remote_port = 0;  ///< TCP only
  std::uint32_t received_to = 0;                  ///< TCP: the sequence number that is expected next
  std::vector<Bytes> received;  ///< what the client has sent: the pieces of a stream, or records, in order
  bool descriptors = false;     ///< Unix: descriptors (SCM_RIGHTS) came with it
};

/// Both: in the order in which accept(2) will give them.
Result<std::vector<PendingConnection>> pending_unix_connections(int listener);
Result<std::vector<PendingConnection>> pending_tcp_connections(int listener);

/// What one write has put into the queue of a Unix stream socket: it takes the sender's buffer until it is read whole.
struct StreamPiece {
  std::uint32_t size = 0;
  std::uint32_t read = 0;  ///< bytes of it that have been read
};
/// The pieces in a socket's receive queue, in order.
Result<std::vector<StreamPiece>> unix_stream_pieces(int fd);

/// A message in the queue of a Unix socket that keeps them apart. recvmsg with SO_PEEK_OFF passes over an empty one
/// that somebody has peeked at before.
struct UnixMessage {
  std::uint32_t size = 0;
  Bytes sender;  ///< the name that its sender was bound to, as in sun_path; empty: none
};
Result<std::vector<UnixMessage>> unix_messages(int fd);

/// Whether the peer's FIN has come in; of a closed socket nothing else tells.
Result<bool> tcp_has_ended(int fd);

/// How often each POSIX timer (by id) of the process has expired since the expiry that its pending signal is for;
/// -1 when none is pending.
Result<std::map<std::int32_t, std::int64_t>> timer_overruns(int pidfd);

/// Finds out now what all of them need, which takes some milliseconds.
void prepare_to_read_kernel_state();

}  // namespace godwit::kernel
