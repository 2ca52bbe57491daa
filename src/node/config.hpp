#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/names.hpp"
#include "base/result.hpp"

namespace godwit::node {

/// Another node that may talk to us, and where it listens.
struct Peer {
  std::string name;
  std::string address;  ///< "host:port" or "[v6]:port"; the port may be missing (4070)
  bool send = true;     ///< our pods may go there
  bool receive = true;  ///< its pods may come here
  /// As whom its pods may run here, and in whose name it may ask for something: node/rules.
  std::vector<std::string> users{"*"};
  std::vector<std::string> capabilities{"all"};  ///< that its pods may have here at most
  bool operator==(const Peer&) const = default;
};

inline constexpr std::uint16_t default_port = 4070;
/// As a destination: whichever node takes it.
inline constexpr std::string_view any_node = "any";

/// What one godwitd is told: a TOML file. `packaging/godwitd.toml` shows every key with its default.
struct Config {
  std::string node;                ///< our name; default: the machine's host name up to the first dot
  std::string listen = "0.0.0.0";  ///< address for peers ("::" for IPv6 too)
  std::uint16_t port = default_port;
  std::vector<Peer> peers;
  /// [tls]: who we are to peers, and who they are to us. Files (PEM); the list of the expelled, and the authority's own
  /// key on the node that has it, stand beside `authority`.
  struct Tls {
    std::string authority, certificate, key;        ///< default: in state_dir/tls
    std::chrono::seconds lifetime{24 * 3600 * 30};  ///< of the certificates that the authority gives from here
    bool operator==(const Tls&) const = default;
  };
  std::optional<Tls> tls;
  /// Instead of it: whoever has the key is trusted, and whoever sees the wire reads everything. Either this or `tls`,
  /// or neither where there are no peers.
  bool plain = false;
  /// With `plain`, the secret that all nodes share: `key = "…"` in the file, or `key_file` with a file of mode 0600.
  std::string key;
  std::string state_dir = "/var/lib/godwit";  ///< must not lie on an overlay
  std::string run_dir = "/run/godwit";
  /// "sqlite" (a file in state_dir), "sqlite:PATH", or "peer:NAME": that node's store is asked, or
  /// "etcd://HOST:PORT,…/PREFIX" (store/etcd.hpp).
  std::string store = "sqlite";
  /// Our directory in the cgroup v2 hierarchy, absolute. Empty: found (the one that the daemon was started in).
  std::string cgroup;
  std::string log_level = "info";  ///< debug, info, warn, error

  struct Socket {
    std::string path;           ///< default: run_dir/godwit.sock
    std::uint32_t mode = 0600;  ///< who may: 0660 with a group for more than root
    std::string group;          ///< empty: root's
    bool operator==(const Socket&) const = default;
  } socket;

  struct Network {
    std::string bridge;    ///< device that pods' ports are enslaved to; empty: pods have only loopback
    std::string subnet4;   ///< CIDR of the nodes' network, "10.66.0.0/16"; empty: no IPv4 addresses for pods
    std::string subnet6;   ///< "fd66::/64"; empty: none
    std::string pods4;     ///< part of subnet4 that pods' addresses are taken from; empty: its upper half
    std::string gateway4;  ///< default routes of pods; empty: none
    std::string gateway6;
    bool operator==(const Network&) const = default;
  } network;

  /// [users]: who besides root may do what with pods of their own, by this node's socket. See node/rules.
  struct Allowed {
    std::vector<std::string> run;        ///< have pods here
    std::vector<std::string> move{"*"};  ///< send them away
    bool operator==(const Allowed&) const = default;
  } users;

  std::map<std::string, std::string> labels;  ///< [labels]: zone = "x", secure = ""
  /// [groups]: names that stand for several nodes as a destination, the same on all nodes. rack1 = ["a", "b"]
  std::map<std::string, std::vector<std::string>> groups;
  bool guests = true;           ///< false: takes only pods that were created here
  std::uint64_t most_pods = 0;  ///< at a time; 0: any number
  /// Seconds for which the source of a pod may be out of reach that still has pages of it: then they are lost.
  std::uint64_t page_patience = 600;

  bool operator==(const Config&) const = default;
  [[nodiscard]] const Peer* peer(const std::string& name) const;
};

/// `invalid` with file, line and key for what is malformed, unknown or out of its limits. `origin` is for messages.
Result<Config> parse_config(const std::string& text, const std::string& origin);
Result<Config> load_config(const std::string& path);

/// Where [tls] looks when it names no files.
Config::Tls default_tls(const std::string& state_dir);

/// "90s", "15m", "12h", "30d".
Result<std::chrono::seconds> parse_duration(const std::string&);
/// The config as a file that parse_config reads back to the same; the key stands in it.
std::string write_config(const Config&);

/// Splits "host:port", "[v6]:port" or "host".
Result<std::pair<std::string, std::uint16_t>> split_address(const std::string& address);

}  // namespace godwit::node
