#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "cli/playground.hpp"

/// What the playground's files share with each other.
namespace godwit::cli::playground {

inline constexpr const char* daemon_log = "/var/log/godwitd.log";  ///< on the node
inline constexpr const char* config_path = "/etc/godwit/godwitd.toml";
inline constexpr const char* subnet4 = "10.66.0.0/16";
inline constexpr const char* subnet6 = "fd66::/64";

// ---- what is written down (playground_state.cpp)

std::string base_directory();
std::string directory_of(const std::string& name);
std::string directory_of(const std::string& name, const std::string& host);
Result<void> save(const State&);
/// Held while the playground is changed. Waits for another command to end; `busy` after a minute.
Result<Fd> lock(const std::string& name);
Result<void> write_file(const std::string& path, const std::string& content, unsigned mode = 0644);
std::optional<std::string> read_file(const std::string& path);
/// Of a process, 0 when there is none.
std::uint64_t start_time(pid_t);
/// A descriptor of the process if it is still the same one.
Result<Fd> open_process(pid_t pid, std::uint64_t start, const std::string& who);
/// SIGKILL, and waits for the end. No error when it has gone.
Result<void> kill_process(pid_t pid, std::uint64_t start);
/// SIGTERM (`hard`: SIGKILL), and waits for the end. No error when it has gone.
Result<void> end_service(pid_t pid, std::uint64_t start, const std::string& who, bool hard);
std::string last_lines(const std::string& path, int lines);

// ---- cgroups (playground_cgroup.cpp)

/// A mounted hierarchy.
struct Hierarchy {
  std::string mount;    ///< where
  std::string options;  ///< to mount it again: "memory", "name=systemd"; empty for v2
  std::string own;      ///< path of our own cgroup in it
  bool v2 = false;
};
Result<std::vector<Hierarchy>> hierarchies();
/// Where the playground's own directory is to be, one per hierarchy that can be used.
Result<std::vector<std::string>> plan_cgroups(const std::string& name);
/// Makes them, with one for each host below.
Result<void> create_cgroups(const State&);
/// Moves the calling process into the host's cgroups; in v2 into `leaf` below it (empty: the host's own).
Result<void> join_cgroups(const State&, const std::string& host, const std::string& leaf);
/// Kills whatever is in them and removes them.
Result<void> remove_cgroups(const State&);

// ---- hosts (playground_host.cpp)

/// Makes a host's namespaces with a PID 1 that keeps them, and calls `connect` when its network namespace exists.
Result<void> start_host(State&, Host&, const std::function<Result<void>()>& written_down);
/// Makes the namespace of the bridge.
Result<void> start_wire(State&, const std::function<Result<void>()>& written_down);
/// Descriptor of a process's network namespace.
Result<Fd> network_of(pid_t pid, std::uint64_t start, const std::string& who);
/// Runs `work` on a thread in that network namespace.
Result<void> in_network(int netns, const std::function<Result<void>()>& work);

// ---- entering (playground_exec.cpp)

/// Enters all namespaces of the host; children made from here on are in it. The caller is single-threaded.
Result<void> enter(const State&, const Host&, const std::string& cgroup_leaf);
/// Something that runs on a host until it is ended.
struct Service {
  std::string name;
  std::vector<std::string> command;
  std::string log;     ///< on the host: its output
  std::string cgroup;  ///< leaf
};
/// Starts it as a child of the host's PID 1, and says who it is.
Result<pid_t> spawn(const State&, const Host&, const Service&);

// ---- a store of several members (playground_store.cpp)

/// Gives the first nodes a member each.
Result<void> plan_store(State&);
/// What the nodes' configs say: "etcd://…"; empty when there are no members.
std::string store_url(const State&);
Result<void> spawn_store(const State&, Host&);
/// Waits until all members answer together.
Result<void> wait_for_store(const State&);

}  // namespace godwit::cli::playground
