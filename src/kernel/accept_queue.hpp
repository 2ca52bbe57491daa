#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

/// What stands in the accept queue of a listening socket. The connections in it have no descriptor, and none can be had
/// without taking them out of the queue for good; so their data is read in the kernel's memory, by a BPF program of a
/// dozen instructions, with the layout that the running kernel publishes (/sys/kernel/btf/vmlinux). Right only while
/// nobody uses the sockets at both ends.
namespace godwit::kernel {

struct PendingConnection {
  std::uint16_t local_port = 0, remote_port = 0;  ///< TCP only
  std::uint32_t received_to = 0;                  ///< TCP: the sequence number that is expected next
  std::vector<Bytes> received;  ///< what the client has sent: the pieces of a stream, or records, in order
  bool descriptors = false;     ///< Unix: descriptors (SCM_RIGHTS) came with it
};

/// Both: in the order in which accept(2) will give them. ErrorKind::failed where the kernel can't be read (no BTF).
Result<std::vector<PendingConnection>> pending_unix_connections(int listener);
Result<std::vector<PendingConnection>> pending_tcp_connections(int listener);

}  // namespace godwit::kernel
