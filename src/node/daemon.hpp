#pragma once

#include <memory>

#include "node/config.hpp"
#include "pod/zygote.hpp"

namespace godwit::node {

/// A running godwitd: store, pods, peers' port, commands' socket.
class Daemon {
 public:
  /// Brings everything up, in the order in which it may be used: when this returns, commands are answered.
  static Result<std::unique_ptr<Daemon>> start(Config, pod::Zygote&);
  /// Ends it: migrations that are not committed are cancelled, connections are closed. Pods go on running.
  ~Daemon();

 private:
  struct Parts;
  explicit Daemon(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::node
