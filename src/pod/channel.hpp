#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

/// Messages with descriptors over a SOCK_SEQPACKET Unix socket.
namespace godwit::pod {

struct Message {
  Bytes bytes;
  std::vector<Fd> descriptors;
  bool cut_short = false;  ///< not all of its descriptors are here: this process may have no more
};

inline constexpr std::size_t message_limit = 16 * MiB;
inline constexpr std::size_t message_descriptors = 64;

/// `gone` when the other side has closed, `busy` when `flags` has MSG_DONTWAIT and there is no room. A message too long
/// for a packet travels in a memfd.
Result<void> send_message(int socket, BytesView bytes, std::span<const int> descriptors = {}, int flags = 0);
/// The next message. `gone` at the end of the connection, `busy` with MSG_DONTWAIT when there is none, `timeout` when
/// the socket has SO_RCVTIMEO.
Result<Message> receive_message(int socket, int flags = 0);
/// As receive_message, but one that was cut short is given, too, and is no error: for who can say so to its sender.
Result<Message> receive_whatever_came(int socket, int flags = 0);

struct Pair {
  Fd ours, theirs;
};
Result<Pair> seqpacket_pair();

/// The path may be longer than a socket address: it goes through a descriptor of its directory. Only the owner may
/// connect.
Result<Fd> listen_at(const std::string& path);
Result<Fd> connect_to(const std::string& path);

}  // namespace godwit::pod
