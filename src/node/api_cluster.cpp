#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <future>

#include "kernel/procfs.hpp"
#include "node/api_parts.hpp"
#include "node/version.hpp"

namespace godwit::node {
namespace {

/// How long the whole cluster may take to answer a list: who is slower is shown as unreachable.
constexpr std::chrono::milliseconds list_time{3000};
constexpr std::size_t list_limit = 16 * MiB;

Result<Json> get_json(const Api& api, const std::string& peer, const std::string& target) {
  auto answer = TRY(ask_peer(api, peer, "GET", target, "", in(list_time)));
  const Json json = TRY(parse_json(TRY(answer.body(list_limit, in(list_time)))));
  if (auto error = error_in(json)) return std::unexpected(std::move(*error));
  return json;
}

std::uint64_t memory_total() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

/// Processes and resident bytes, when that can be had at once.
void add_usage(LocalPod& pod, Json& json) {
  (void)pod.with(
      [&](pod::Pod& held) -> Result<void> {
        std::uint64_t resident = 0;
        const auto processes = TRY(held.workload().processes());
        for (const HostPid process : processes)
          if (const auto status = kernel::read_status(process)) resident += status->resident_bytes;
        json["processes"] = processes.size();
        json["memory"] = resident;
        return {};
      },
      std::chrono::seconds(0));
}

Json local_pods(const Api& api) {
  Json list = Json::array();
  for (const auto& pod : api.pods.list()) {
    Json json = to_json(*pod, api.links.config().node);
    add_usage(*pod, json);
    list.push_back(std::move(json));
  }
  return list;
}

/// What every peer answers to `target`, asked at the same time.
std::map<std::string, Result<Json>> ask_all(const Api& api, const std::vector<std::string>& peers,
                                            const std::string& target) {
  std::map<std::string, std::future<Result<Json>>> pending;
  for (const std::string& peer : peers)
    pending[peer] = std::async(std::launch::async, [&api, peer, target] { return get_json(api, peer, target); });
  std::map<std::string, Result<Json>> all;
  for (auto& [peer, answer] : pending) all.emplace(peer, answer.get());
  return all;
}

std::int64_t seconds_since(std::chrono::system_clock::time_point then) {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now() - then).count();
}

Json doubts_json(const Api& api) {
  Json list = Json::array();
  for (const auto& doubt : api.doubts.list())
    list.push_back({{"pod", doubt.pod},
                    {"peer", doubt.peer},
                    {"arriving", doubt.arriving},
                    {"seconds", seconds_since(doubt.since)}});
  return list;
}

Json remainders_json(const Api& api) {
  Json list = Json::array();
  for (const auto& left : api.remainders.list())
    list.push_back({{"pod", left.pod},
                    {"destination", left.destination},
                    {"move", left.move},
                    {"asked", left.asked},
                    {"seconds", seconds_since(left.since)},
                    {"reason", "the destination has not fetched all of its pages"},
                    {"ends", "when it has, or when the pod has ended"}});
  return list;
}

}  // namespace

Json node_json(const Api& api) {
  const Config& config = api.links.config();
  utsname name{};
  ::uname(&name);
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  return {{"name", config.node},
          {"state", "ok"},
          {"version", version},
          {"kernel", name.release},
          {"machine", name.machine},
          {"cpus", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"load", load},
          {"memory_total", memory_total()},
          {"memory_available", memory_available()},
          {"pods", api.pods.list().size()},
          {"store", config.store},
          {"labels", config.labels},
          {"guests", config.guests},
          {"draining", api.starter.draining()},
          {"doubts", doubts_json(api)},
          {"remainders", remainders_json(api)}};
}

void serve_nodes(const Api& api, Stream& client) {
  std::vector<std::string> peers;
  for (const Peer& peer : api.links.config().peers) peers.push_back(peer.name);
  Json list = Json::array({node_json(api)});
  list[0]["self"] = true;
  for (const auto& [peer, found] : ask_all(api, peers, "/v1/node")) {
    Json json = found ? *found
                      : Json{{"name", peer},
                             {"state", found.error().kind == ErrorKind::refused ? "refused" : "unreachable"},
                             {"error", found.error().message()}};
    json["address"] = api.links.config().peer(peer)->address;
    list.push_back(std::move(json));
  }
  answer(client, Json{{"nodes", std::move(list)}});
}

void serve_pods(const Api& api, Stream& client, bool local) {
  Json mine = local_pods(api);
  if (local) return answer(client, Json{{"pods", std::move(mine)}, {"warnings", Json::array()}});
  Json list = Json::array();
  Json warnings = Json::array();
  const auto records = api.store.list();
  if (!records) {
    warnings.push_back(records.error().message() + ": these are the pods of this node only");
    return answer(client, Json{{"pods", std::move(mine)}, {"warnings", std::move(warnings)}});
  }
  const std::string& self = api.links.config().node;
  std::vector<std::string> owners;
  for (const auto& record : *records)
    if (record.owner != self && std::ranges::find(owners, record.owner) == owners.end()) owners.push_back(record.owner);
  std::map<std::string, Json> details;  // by id: a pod that moves right now may be seen twice or not at all
  const auto add = [&](const Json& pods) {
    for (const Json& pod : pods) details[text_field(pod, "id").value_or("")] = pod;
  };
  add(mine);
  auto answers = ask_all(api, owners, "/v1/pods?local");
  for (const auto& [owner, found] : answers) {
    if (found && found->contains("pods")) add((*found)["pods"]);
    if (!found) warnings.push_back(found.error().message());
  }
  for (const auto& record : *records) {
    const auto found = details.find(record.id);
    const auto owner = answers.find(record.owner);
    const bool silent = owner != answers.end() && !owner->second;
    const char* missing_here = api.pods.expected(record.pod) ? "arriving" : "lost";
    Json json = found != details.end() ? found->second
                                       : to_json(record, silent                 ? "unreachable"
                                                         : record.owner == self ? missing_here
                                                                                : "unknown");
    json["epoch"] = record.epoch;
    list.push_back(std::move(json));
  }
  answer(client, Json{{"pods", std::move(list)}, {"warnings", std::move(warnings)}});
}

}  // namespace godwit::node
