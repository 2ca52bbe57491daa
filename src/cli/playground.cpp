#include "cli/playground.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "base/random.hpp"
#include "cli/playground_parts.hpp"
#include "kernel/netlink.hpp"
#include "node/authority.hpp"
#include "node/config.hpp"
#include "node/credentials.hpp"
#include "node/files.hpp"

namespace godwit::cli::playground {

namespace fs = std::filesystem;
using kernel::Netlink;

namespace {

constexpr const char* bridge = "playground";  // in the wire's namespace
constexpr std::chrono::seconds patience{20};

/// Name of a host's cable: at the switch it is the host's name, in a client `eth0`, on a node `uplink` behind br0.
const char* device_of(const Host& host) {
  return host.node ? "uplink" : "eth0";
}

Result<kernel::Mac> mac_of(const Host& host) {
  const auto address = TRY(kernel::parse_prefix(host.address4));
  return kernel::Mac{0x02, 'p', address.bytes[0], address.bytes[1], address.bytes[2], address.bytes[3]};
}

Result<void> lay_wire(const State& state) {
  const Fd wire = TRY(network_of(state.wire, state.wire_start, "the wire"));
  return in_network(wire.get(), [&]() -> Result<void> {
    const auto netlink = TRY(Netlink::open());
    TRY(netlink.create_bridge(bridge));
    const int device = TRY(netlink.index(bridge));
    TRY(netlink.no_automatic_address(device));
    return netlink.set_up(device, true);
  });
}

/// The host's own side: its addresses, on br0 if pods are to stand beside it.
Result<void> configure_network(const State& state, const Host& host) {
  const auto netlink = TRY(Netlink::open());
  TRY(netlink.set_up(TRY(netlink.index("lo")), true));
  int device = TRY(netlink.index(device_of(host)));
  if (host.node) {
    TRY(netlink.create_bridge("br0"));
    const int br0 = TRY(netlink.index("br0"));
    TRY(netlink.set_master(device, br0));
    TRY(netlink.no_automatic_address(device));
    TRY(netlink.set_up(device, true));
    device = br0;
  }
  TRY(netlink.set_mac(device, TRY(mac_of(host))));
  TRY(netlink.set_mtu(device, state.mtu));
  TRY(netlink.add_address(device, TRY(kernel::parse_prefix(host.address4 + "/16"))));
  TRY(netlink.add_address(device, TRY(kernel::parse_prefix(host.address6 + "/64"))));
  if (!host.store_address.empty())
    TRY(netlink.add_address(device, TRY(kernel::parse_prefix(host.store_address + "/16"))));
  return netlink.set_up(device, true);
}

Result<void> plug_in(const State& state, const Host& host) {
  const Fd wire = TRY(network_of(state.wire, state.wire_start, "the wire"));
  const Fd there = TRY(network_of(host.pid, host.start, "host " + host.name));
  TRY(in_network(wire.get(), [&]() -> Result<void> {
    const auto netlink = TRY(Netlink::open());
    TRY(netlink.create_veth({.name = host.name,
                             .peer_name = device_of(host),
                             .peer_netns = there.get(),
                             .peer_mac = {},
                             .mtu = state.mtu}));
    const int device = TRY(netlink.index(host.name));
    TRY(netlink.no_automatic_address(device));
    TRY(netlink.set_master(device, TRY(netlink.index(bridge))));
    return netlink.set_up(device, true);
  }));
  TRY(in_network(there.get(), [&] { return configure_network(state, host); }));
  const auto wait = [](const std::string& device) -> Result<void> {
    const auto netlink = TRY(Netlink::open());
    return netlink.wait_until_it_carries(TRY(netlink.index(device)), patience);
  };
  TRY(in_network(wire.get(), [&] { return wait(host.name); }));
  TRY(in_network(there.get(), [&] { return wait(device_of(host)); }));
  return in_network(there.get(), [&] { return wait(host.node ? "br0" : "eth0"); });
}

/// Where a node has its certificate: in /etc, which is a layer of its own from before the node stands.
node::Config::Tls tls_files(const std::string& root) {
  const std::string directory = root + "/etc/godwit/tls/";
  return {
      .authority = directory + "authority.pem", .certificate = directory + "node.pem", .key = directory + "node.key"};
}

/// The first node has the authority; every node gets a certificate of it.
Result<void> give_certificates(const State& state) {
  namespace pki = node::pki;
  const auto files = [&](const Host& host) { return tls_files(directory_of(state.name, host.name) + "/upper"); };
  const node::Config::Tls first = files(state.hosts.front());
  const std::string directory = fs::path(first.authority).parent_path();
  TRY(pki::make_authority(directory));
  auto authority = TRY(pki::Authority::open(directory));
  const std::string list = TRY(node::read_whole(pki::expelled_beside(first.authority), pki::list_limit));
  for (const auto& host : state.hosts) {
    if (!host.node) continue;
    const auto key = TRY(pki::make_key());
    const auto request = TRY(pki::make_request(key.get()));
    const auto certificate = TRY(authority.sign(request.get(), {host.name, {}}, pki::default_life));
    TRY(pki::install(files(host), pki::to_pem(authority.certificate()), list, pki::to_pem(key.get()),
                     pki::to_pem(certificate.get())));
  }
  return {};
}

/// Files that a machine has of its own, written into the host's layer before its root stands.
Result<void> write_identity(const State& state, const Host& host) {
  const std::string upper = directory_of(state.name, host.name) + "/upper";
  std::error_code error;
  for (const char* directory : {"/etc/godwit", "/var/log", "/var/lib"})
    fs::create_directories(upper + directory, error);
  TRY(write_file(upper + "/etc/hostname", host.name + "\n"));
  std::string hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n";
  for (const auto& other : state.hosts)
    hosts += fmt::format("{} {}\n{} {}\n", other.address4, other.name, other.address6, other.name);
  TRY(write_file(upper + "/etc/hosts", hosts));
  if (!host.node) return {};
  node::Config config;
  config.node = host.name;
  config.listen = "::";
  config.plain = !state.key.empty();
  config.key = state.key;
  if (!config.plain) config.tls = tls_files("");
  config.socket.path = config.run_dir + "/godwit.sock";
  const Host& first = state.hosts.front();
  if (const std::string url = store_url(state); !url.empty())
    config.store = url;
  else if (host.name != first.name)
    config.store = "peer:" + first.name;
  for (const auto& other : state.hosts)
    if (other.node && other.name != host.name) config.peers.push_back({.name = other.name, .address = other.address4});
  config.network.bridge = "br0";
  config.network.subnet4 = subnet4;
  config.network.subnet6 = subnet6;
  return write_file(upper + config_path, node::write_config(config), 0600);
}

Result<State> plan(const std::string& name, const UpOptions& options) {
  if (options.nodes < 1 || options.nodes > 26)
    return fail(ErrorKind::invalid, "a playground has 1 to 26 nodes, not {}", options.nodes);
  if (options.mtu < 1280 || options.mtu > 65535) return fail(ErrorKind::invalid, "an MTU of {}", options.mtu);
  State state{.name = name, .mtu = options.mtu};
  if (options.plain) state.key = TRY(random_hex(32));
  std::error_code error;
  state.godwitd = options.godwitd;
  if (state.godwitd.empty()) state.godwitd = fs::read_symlink("/proc/self/exe", error).parent_path() / "godwitd";
  state.godwitd = fs::absolute(state.godwitd, error);
  if (access(state.godwitd.c_str(), X_OK) != 0) {
    if (options.daemons) return fail_errno("the daemon {}", state.godwitd);
    state.godwitd = "/bin/false";
  }
  for (int i = 0; i < options.nodes; ++i)
    state.hosts.push_back({.name = std::string(1, static_cast<char>('a' + i)),
                           .address4 = fmt::format("10.66.0.{}", 11 + i),
                           .address6 = fmt::format("fd66::{}", 11 + i)});
  if (options.store == "etcd")
    TRY(plan_store(state));
  else if (options.store != "sqlite")
    return fail(ErrorKind::invalid, "a playground's store is sqlite or etcd, not \"{}\"", options.store);
  state.hosts.push_back({.name = "client", .node = false, .address4 = "10.66.0.10", .address6 = "fd66::10"});
  return state;
}

Result<void> check_machine() {
  if (geteuid() != 0) return fail(ErrorKind::refused, "a playground needs root");
  std::error_code error;
  fs::create_directories(base_directory(), error);
  struct statfs info {};
  if (statfs(base_directory().c_str(), &info) != 0) return fail_errno("look at {}", base_directory());
  if (info.f_type == OVERLAYFS_SUPER_MAGIC) {
    auto refusal = fail(ErrorKind::refused, "{} lies on an overlay, and the hosts' layers can't", base_directory());
    refusal.error().hint = "set GODWIT_PLAYGROUND_DIR to a directory on a disk";
    return refusal;
  }
  return {};
}

/// Everything off, nothing written about it any more. Goes on past what fails, and reports the first failure.
Result<void> take_down(const State& state) {
  Result<void> first;
  const auto note = [&](Result<void> result) {
    if (!result && first) first = std::move(result);
  };
  for (const auto& host : state.hosts) note(kill_process(host.pid, host.start));
  note(kill_process(state.wire, state.wire_start));
  note(remove_cgroups(state));
  if (!first) return first;
  std::error_code error;
  fs::remove_all(directory_of(state.name), error);
  if (error) return fail(ErrorKind::failed, "remove {}: {}", directory_of(state.name), error.message());
  return {};
}

void forget_lock(const std::string& name) {
  unlink((base_directory() + "/" + name + ".lock").c_str());
  rmdir(base_directory().c_str());  // the last playground's
}

Result<void> spawn_daemon(const State& state, Host& host) {
  host.daemon = TRY(spawn(state, host,
                          {.name = "godwitd",
                           .command = {"/usr/local/bin/godwitd", "--config", config_path},
                           .log = daemon_log,
                           .cgroup = "godwitd"}));
  host.daemon_start = start_time(host.daemon);
  return {};
}

/// Whether somebody accepts on the daemon's socket, in the node's own /run.
bool answers(const Host& host) {
  const Fd socket_here(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  const std::string path = fmt::format("/proc/{}/root{}", host.pid, "/run/godwit/godwit.sock");
  path.copy(to.sun_path, sizeof to.sun_path - 1);
  return connect(socket_here.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
}

Result<void> wait_for_daemon(const State& state, const Host& host) {
  const auto complain = [&](ErrorKind kind, const char* what) {
    auto error = fail(kind, "godwitd on {} {}", host.name, what);
    error.error().hint =
        "its log ends with:\n" + last_lines(directory_of(state.name, host.name) + "/upper" + daemon_log, 20);
    return error;
  };
  const auto process = open_process(host.daemon, host.daemon_start, "godwitd on " + host.name);
  if (!process) return complain(ErrorKind::failed, "ended at once");
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!answers(host)) {
    pollfd wait{.fd = process->get(), .events = POLLIN};
    if (poll(&wait, 1, 10) == 1) return complain(ErrorKind::failed, "ended");
    if (std::chrono::steady_clock::now() > end) return complain(ErrorKind::timeout, "doesn't answer");
  }
  return {};
}

Result<void> build(State& state, const UpOptions& options) {
  std::error_code error;
  fs::create_directories(directory_of(state.name), error);
  if (error) return fail(ErrorKind::failed, "make {}: {}", directory_of(state.name), error.message());
  const auto write_down = [&] { return save(state); };
  state.cgroups = TRY(plan_cgroups(state.name));
  TRY(save(state));
  TRY(create_cgroups(state));
  TRY(start_wire(state, write_down));
  TRY(lay_wire(state));
  if (state.key.empty()) TRY(give_certificates(state));
  for (auto& host : state.hosts) {
    TRY(write_identity(state, host));
    TRY(start_host(state, host, write_down));
    TRY(plug_in(state, host));
    options.say(fmt::format("{:<8} {}  {}", host.name, host.address4, host.address6));
  }
  // Every machine stands and reaches every other.
  for (auto& host : state.hosts) {
    if (host.store_address.empty()) continue;
    TRY(spawn_store(state, host));
    TRY(save(state));
  }
  TRY(wait_for_store(state));
  for (const auto& host : state.hosts)
    if (!host.store_address.empty())
      options.say(fmt::format("{:<8} etcd answers on {}", host.name, host.store_address));
  if (options.daemons) {
    for (auto& host : state.hosts) {
      if (!host.node) continue;
      TRY(spawn_daemon(state, host));
      TRY(save(state));
    }
    for (const auto& host : state.hosts) {
      if (!host.node) continue;
      TRY(wait_for_daemon(state, host));
      options.say(fmt::format("{:<8} godwitd answers", host.name));
    }
  }
  state.complete = true;
  return save(state);
}

Result<void> check_name(const std::string& name) {
  if (!valid_name(name) || name.find('.') != std::string::npos)
    return fail(ErrorKind::invalid, "\"{}\" is no name for a playground (a-z, 0-9, -)", name);
  return {};
}

Result<Host*> find_host(State& state, const std::string& name, bool node) {
  for (auto& host : state.hosts)
    if (host.name == name && (host.node || !node)) return &host;
  return fail(ErrorKind::not_found, "playground {} has no {} \"{}\"", state.name, node ? "node" : "host", name);
}

Result<Host*> find_member(State& state, const std::string& node) {
  Host* host = TRY(find_host(state, node, true));
  if (host->store_address.empty())
    return fail(ErrorKind::not_found, "playground {} has no member of etcd on \"{}\"", state.name, node);
  return host;
}

}  // namespace

Result<bool> up(const std::string& name, const UpOptions& options) {
  TRY(check_name(name));
  TRY(check_machine());
  const Fd held = TRY(lock(name));
  if (const auto before = load(name); before) {
    bool whole = before->complete && alive(before->wire, before->wire_start);
    for (const auto& host : before->hosts) whole &= alive(host.pid, host.start);
    if (whole) return false;
    options.say("removing what an earlier playground has left");
    TRY(take_down(*before));
  }
  State state = TRY(plan(name, options));
  auto built = build(state, options);
  if (!built) {
    (void)take_down(state);
    forget_lock(name);
    return std::unexpected(std::move(built.error()));
  }
  return true;
}

Result<bool> down(const std::string& name) {
  TRY(check_name(name));
  std::error_code error;
  if (!fs::exists(directory_of(name), error)) return false;
  const Fd held = TRY(lock(name));
  auto state = load(name);
  // Without a readable record nothing was started yet: it is written before the first process.
  if (!state && state.error().kind == ErrorKind::not_found) state = State{.name = name};
  if (!state) return std::unexpected(std::move(state.error()));
  TRY(take_down(*state));
  forget_lock(name);
  return true;
}

Result<void> start_daemon(const std::string& name, const std::string& node) {
  Fd held = TRY(lock(name));
  State state = TRY(load(name));
  Host& host = *TRY(find_host(state, node, true));
  if (alive(host.daemon, host.daemon_start)) return {};
  TRY(spawn_daemon(state, host));
  TRY(save(state));
  held.reset();
  return wait_for_daemon(state, host);
}

Result<void> stop_daemon(const std::string& name, const std::string& node, bool hard) {
  State state = TRY(load(name));
  Host& host = *TRY(find_host(state, node, true));
  return end_service(host.daemon, host.daemon_start, "godwitd on " + node, hard);
}

Result<void> start_store(const std::string& name, const std::string& node) {
  const Fd held = TRY(lock(name));
  State state = TRY(load(name));
  Host& host = *TRY(find_member(state, node));
  if (alive(host.store, host.store_start)) return {};
  TRY(spawn_store(state, host));
  return save(state);
}

Result<void> stop_store(const std::string& name, const std::string& node, bool hard) {
  State state = TRY(load(name));
  const Host& host = *TRY(find_member(state, node));
  return end_service(host.store, host.store_start, "etcd on " + node, hard);
}

namespace {

/// "1gbit", "500mbit", "64kbit" in bit/s; 0 for "none".
Result<std::uint64_t> parse_rate(const std::string& text) {
  if (text == "none") return 0;
  char* rest = nullptr;
  const double number = std::strtod(text.c_str(), &rest);
  const std::string unit = rest;
  for (const auto& [name, factor] : {std::pair{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1.0}})
    if (unit == name && number > 0 && number * factor <= 1e12) return static_cast<std::uint64_t>(number * factor);
  return fail(ErrorKind::invalid, "\"{}\" is no rate (1gbit, 500mbit, none)", text);
}

}  // namespace

Result<void> set_link(const std::string& name, const std::string& host_name, const std::string& setting) {
  State state = TRY(load(name));
  const Host& host = *TRY(find_host(state, host_name, false));
  const Fd wire = TRY(network_of(state.wire, state.wire_start, "the wire"));
  if (setting == "up" || setting == "down")
    return in_network(wire.get(), [&]() -> Result<void> {
      const auto netlink = TRY(Netlink::open());
      const int device = TRY(netlink.index(host.name));
      TRY(netlink.set_up(device, setting == "up"));
      return setting == "up" ? netlink.wait_until_it_carries(device, patience) : Result<void>{};
    });
  if (!setting.starts_with("rate="))
    return fail(ErrorKind::invalid, "a link can be up, down or rate=…, not \"{}\"", setting);
  const std::uint64_t rate = TRY(parse_rate(setting.substr(5)));
  const auto limit = [rate](const std::string& device) -> Result<void> {
    const auto netlink = TRY(Netlink::open());
    const int index = TRY(netlink.index(device));
    return rate == 0 ? netlink.clear_rate(index) : netlink.set_rate(index, rate);
  };
  const Fd there = TRY(network_of(host.pid, host.start, "host " + host.name));
  TRY(in_network(wire.get(), [&] { return limit(host.name); }));
  return in_network(there.get(), [&] { return limit(device_of(host)); });
}

}  // namespace godwit::cli::playground
