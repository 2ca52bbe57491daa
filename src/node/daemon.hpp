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

/// The directory in the cgroup v2 hierarchy below which this node's pods get theirs, made if need be: `configured`, or
/// godwit/NODE at the top of the hierarchy. Not below the cgroup that a service manager has started us in: it would
/// have to be empty of processes while pods are in it, when we are started again.
Result<std::string> prepare_cgroup(const std::string& configured, const std::string& node);

}  // namespace godwit::node
