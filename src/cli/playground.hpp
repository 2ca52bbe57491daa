#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace godwit::cli {

/// `godwit playground …`: the arguments after that word. Returns the exit code.
int playground_main(const std::vector<std::string>& arguments);

}  // namespace godwit::cli

/// Several machines on one: nodes `a`, `b`, `c`, … and a host `client`, each in network, mount, pid, uts, ipc, time and
/// cgroup namespaces of its own, with a root of its own (an overlay above this machine's), joined by a bridge that
/// stands in a network namespace of its own. Nothing of this machine's network is touched. What exists is written down
/// in /var/lib/godwit-playground/NAME (GODWIT_PLAYGROUND_DIR), with every process by pid and start time.
namespace godwit::cli::playground {

/// One of the machines.
struct Host {
  std::string name;
  bool node = true;  ///< has a godwitd
  pid_t pid = 0;     ///< its PID 1, as this machine sees it; 0 when it isn't there
  std::uint64_t start = 0;
  std::string address4, address6;  ///< without prefix length
  pid_t daemon = 0;
  std::uint64_t daemon_start = 0;
  std::string store_address;  ///< of the member of etcd that runs here; empty: none does
  pid_t store = 0;
  std::uint64_t store_start = 0;
};

/// A playground as it is written down.
struct State {
  std::string name;
  bool complete = false;  ///< `up` has come to its end
  std::string godwitd;    ///< path of the binary on this machine
  std::string key;        ///< shared by the nodes, where they speak plain TCP; else empty, and they have certificates
  int mtu = 1500;
  pid_t wire = 0;  ///< the process that keeps the bridge's namespace
  std::uint64_t wire_start = 0;
  std::vector<Host> hosts;
  std::vector<std::string> cgroups;  ///< directories of this playground, one per hierarchy

  [[nodiscard]] const Host* find(const std::string& host) const;
};

struct UpOptions {
  int nodes = 3;        ///< 1 to 26
  bool daemons = true;  ///< start godwitd on the nodes and wait until it answers
  /// "sqlite": the first node has the store. "etcd": a cluster of three members has it, on the first three nodes, each
  /// at an address of its own (of one member where there are fewer nodes).
  std::string store = "sqlite";
  std::string godwitd;  ///< empty: beside this binary
  int mtu = 1500;
  bool plain = false;                                                       ///< no TLS between the nodes
  std::function<void(const std::string&)> say = [](const std::string&) {};  ///< progress, a line at a time
};

/// Returns false when that playground is up already. What an earlier `up` left half done is removed first. On failure
/// nothing is left; the error's hint is the end of a daemon's log if that was the reason.
Result<bool> up(const std::string& name, const UpOptions&);
/// Removes all of it, whatever state it is in. False when there was nothing.
Result<bool> down(const std::string& name);
/// nullopt-like: `not_found` when there is none of that name.
Result<State> load(const std::string& name);
Result<std::vector<std::string>> names();

/// Whether the process with this identity lives.
bool alive(pid_t pid, std::uint64_t start);

/// Runs a command on a host, as root, in its root directory, with our streams (a terminal if ours is one). Returns its
/// exit code; 128 + signal if one ended it; 127 when it can't be executed.
Result<int> exec(const std::string& name, const std::string& host, const std::vector<std::string>& command);

Result<void> start_daemon(const std::string& name, const std::string& node);
/// SIGTERM, and waits for its end; `hard`: SIGKILL.
Result<void> stop_daemon(const std::string& name, const std::string& node, bool hard);

/// The same of the node's member of etcd. It has started when it takes connections: whether it has the others' ear is
/// not waited for.
Result<void> start_store(const std::string& name, const std::string& node);
Result<void> stop_store(const std::string& name, const std::string& node, bool hard);

/// "up", "down" (the cable is pulled at the switch), "rate=RATE" both ways ("1gbit", "500mbit", "none").
Result<void> set_link(const std::string& name, const std::string& host, const std::string& setting);

}  // namespace godwit::cli::playground
