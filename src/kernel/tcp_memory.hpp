#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

/// TCP connections as the kernel has them in its memory: many are read in the time that one takes by system calls.
namespace godwit::kernel {

/// What changes in a connection as it is used.
struct TcpProgress {
  int state = 0;                ///< TCP_ESTABLISHED = 1 …
  bool quiet = false;           ///< established, and nothing waits in it: no byte either way, no error, no FIN
  std::uint32_t sent = 0;       ///< sequence number behind what the program has written
  std::uint32_t received = 0;   ///< sequence number behind what has come in
  std::uint32_t timestamp = 0;  ///< what its clock of time stamps shows, as TCP_TIMESTAMP tells it; not too little
  std::uint32_t window_update = 0, send_window = 0, max_window = 0, receive_window = 0, receive_window_update = 0;
  std::uint32_t mss = 0;  ///< negotiated
};

/// Reads struct tcp_sock by the layout that the running kernel publishes. One for the daemon; any thread may use it.
class TcpMemory {
 public:
  /// ErrorKind::failed where the kernel can't be read (no BTF), or has it otherwise.
  static Result<TcpMemory*> get();
  ~TcpMemory();

  /// A socket's memory at one moment; empty when it couldn't be read.
  using Image = Bytes;
  /// The TCP sockets behind descriptors of the calling thread's table, in that order.
  Result<std::vector<Image>> read(std::span<const int> fds);

  /// Whether both are of one socket, and no option of it can have changed between them. Everything is compared but what
  /// is known to change by use: what isn't known makes two images different, never the same.
  [[nodiscard]] bool same_options(const Image&, const Image&) const;
  /// False for a socket with a part that lies elsewhere (a filter, IP options): there a change can't be seen.
  [[nodiscard]] bool is_whole(const Image&) const;
  /// Options that programs set to and fro, as the image has them: what getsockopt has told in between is compared.
  struct Toggled {
    int no_delay, cork, low_water, priority, mark, peek_offset, type_of_service;
    bool receive_timeout, send_timeout;
    bool operator==(const Toggled&) const = default;
  };
  [[nodiscard]] Toggled toggled(const Image&) const;
  /// `clock`: what TCP_TIMESTAMP tells of a new socket now.
  [[nodiscard]] TcpProgress progress(const Image&, std::uint32_t clock) const;

 private:
  struct Parts;
  explicit TcpMemory(std::unique_ptr<Parts>);
  static Result<std::unique_ptr<TcpMemory>> open();
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::kernel
