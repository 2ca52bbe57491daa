#pragma once

#include <string>
#include <thread>

#include "node/config.hpp"
#include "node/handshake.hpp"
#include "node/tasks.hpp"

namespace godwit::node {

/// Takes connections on one listening socket; each is served on a thread of its own.
class Server {
 public:
  /// `strangers`, `most`: see Tasks.
  Server(Fd listener, std::size_t strangers, std::size_t most, Tasks::Work serve);
  ~Server() { stop(); }
  /// No connection is taken or served from here on.
  void stop();

 private:
  void accept_all();

  Fd listener_;
  Fd wake_;
  Tasks::Work serve_;
  Tasks tasks_;
  std::thread thread_;
};

/// The Unix socket for commands, with its mode and group from before anyone can connect.
Result<Fd> listen_unix(const Config::Socket&);
/// The port for peers.
Result<Fd> listen_tcp(const std::string& address, std::uint16_t port);

}  // namespace godwit::node
