#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "cli/playground_parts.hpp"
#include "node/http.hpp"

/// The members of etcd: each in its node's namespaces, with its data in the node's layer, at an address of its own, so
/// that a node can be cut off from the store and from nothing else.
namespace godwit::cli::playground {
namespace {

constexpr const char* binary = "/usr/bin/etcd";
constexpr const char* log_file = "/var/log/etcd.log";
constexpr int client_port = 2379, peer_port = 2380;
constexpr std::size_t members = 3;
/// The first election may take some rounds where three members start on one busy machine.
constexpr std::chrono::seconds patience{60};

std::string url(const Host& host, int port) {
  return fmt::format("http://{}:{}", host.store_address, port);
}

/// etcd's own word: it is well when a read that needs more than half of the members has come through.
Result<void> ask_health(const Host& host) {
  const auto limit = node::in(std::chrono::seconds(3));
  Fd connection = TRY(node::connect_tcp(host.store_address, client_port, limit));
  auto answer = TRY(node::http::Answer::to(Stream(std::move(connection)), "GET", "/health", "", {}, limit));
  const std::string body = TRY(answer.body(4096, limit));
  if (answer.status() == 200 && body.find("\"true\"") != std::string::npos) return {};
  return fail(ErrorKind::unreachable, "it says {}", body);
}

}  // namespace

Result<void> plan_store(State& state) {
  if (access(binary, X_OK) != 0) {
    auto error = fail_errno("{}", binary);
    error.error().hint = "apt-get install etcd-server";
    return error;
  }
  const std::size_t count = state.hosts.size() < members ? 1 : members;
  for (std::size_t i = 0; i < count; i++) state.hosts[i].store_address = fmt::format("10.66.1.{}", 11 + i);
  return {};
}

std::string store_url(const State& state) {
  std::string places;
  for (const auto& host : state.hosts)
    if (!host.store_address.empty())
      places += fmt::format("{}{}:{}", places.empty() ? "" : ",", host.store_address, client_port);
  return places.empty() ? "" : "etcd://" + places;
}

Result<void> spawn_store(const State& state, Host& host) {
  std::string cluster;
  for (const auto& other : state.hosts)
    if (!other.store_address.empty())
      cluster += fmt::format("{}{}={}", cluster.empty() ? "" : ",", other.name, url(other, peer_port));
  host.store = TRY(spawn(
      state, host,
      {.name = "etcd",
       .command = {binary, "--name", host.name, "--data-dir", "/var/lib/etcd", "--listen-client-urls",
                   url(host, client_port), "--advertise-client-urls", url(host, client_port), "--listen-peer-urls",
                   url(host, peer_port), "--initial-advertise-peer-urls", url(host, peer_port), "--initial-cluster",
                   cluster, "--initial-cluster-token", state.name, "--auto-compaction-retention=1h"},
       .log = log_file,
       .cgroup = "etcd"}));
  host.store_start = start_time(host.store);
  return {};
}

Result<void> wait_for_store(const State& state) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (const auto& host : state.hosts) {
    if (host.store_address.empty()) continue;
    const Fd there = TRY(network_of(host.pid, host.start, "host " + host.name));
    for (;;) {
      const auto well = in_network(there.get(), [&] { return ask_health(host); });
      if (well) break;
      if (alive(host.store, host.store_start) && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        continue;
      }
      auto error = fail(ErrorKind::failed, "etcd on {}: {}", host.name, well.error().message());
      error.error().hint =
          "its log ends with:\n" + last_lines(directory_of(state.name, host.name) + "/upper" + log_file, 10);
      return error;
    }
  }
  return {};
}

}  // namespace godwit::cli::playground
