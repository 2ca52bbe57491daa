#include <future>

#include "kernel/procfs.hpp"
#include "node/api_parts.hpp"

namespace godwit::node {
namespace {

/// How long the whole cluster may take to answer a list: who is slower is shown as unreachable.
constexpr std::chrono::milliseconds list_time{3000};
/// The same where there is something to show all the same.
constexpr std::chrono::milliseconds doubt_time{1000};
constexpr std::size_t list_limit = 16 * MiB;

const char* store_word(bool answers) {
  return answers ? "ok" : "away";
}

Result<Json> get_json(const Api& api, const std::string& peer, const std::string& target,
                      std::chrono::milliseconds limit) {
  const Deadline deadline = in(limit);
  auto answer = TRY(ask_peer(api, peer, "GET", target, "", deadline));
  const Json json = TRY(parse_json(TRY(answer.body(list_limit, deadline))));
  if (auto error = error_in(json)) return std::unexpected(std::move(*error));
  return json;
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
    if (!api.sees(pod->spec.user.uid)) continue;
    Json json = to_json(*pod, api.links.config().node);
    add_usage(*pod, json);
    list.push_back(std::move(json));
  }
  return list;
}

/// What every peer answers to `target`, asked at the same time.
std::map<std::string, Result<Json>> ask_all(const Api& api, const std::vector<std::string>& peers,
                                            const std::string& target, std::chrono::milliseconds limit = list_time) {
  std::map<std::string, std::future<Result<Json>>> pending;
  for (const std::string& peer : peers)
    pending[peer] = std::async(std::launch::async, [&, peer] { return get_json(api, peer, target, limit); });
  std::map<std::string, Result<Json>> all;
  for (auto& [peer, answer] : pending) {
    auto said = answer.get();
    if (said && !said->is_object()) said = fail(ErrorKind::invalid, "node {} answers with no object", peer);
    all.emplace(peer, std::move(said));
  }
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
  Json json = describe_node(api.links.config(), api.pods, api.starter);
  json["store_state"] = store_word(api.registry.store_answers());
  if (!api.caller.is_root()) return json;
  json["doubts"] = doubts_json(api);
  json["remainders"] = remainders_json(api);
  json["promises"] = api.starter.promises();
  return json;
}

void serve_nodes(const Api& api, Stream& client, bool fresh) {
  const Config& config = api.links.config();
  const auto registered = registered_nodes(api.store);
  std::map<std::string, Json> nodes = registered ? *registered : std::map<std::string, Json>();
  nodes[config.node] = node_json(api);
  nodes[config.node]["self"] = true;
  // Whom the registry vouches for isn't asked. Of the others it may know nothing yet, or can't be reached itself.
  std::vector<std::string> doubtful;
  for (const Peer& peer : config.peers)
    if (fresh || !nodes.contains(peer.name) || nodes[peer.name]["state"] == "away") doubtful.push_back(peer.name);
  for (const auto& [peer, found] : ask_all(api, doubtful, "/v1/node", registered && !fresh ? doubt_time : list_time)) {
    const bool refused = !found && found.error().kind == ErrorKind::refused;
    if (found)
      (nodes[peer] = *found)["name"] = peer;
    else if (refused || !nodes.contains(peer))
      nodes[peer] =
          Json{{"name", peer}, {"state", refused ? "refused" : "unreachable"}, {"error", found.error().message()}};
  }
  for (const Peer& peer : config.peers) nodes[peer.name]["address"] = peer.address;
  Json list = Json::array();
  for (auto& [name, json] : nodes) list.push_back(std::move(json));
  Json warnings = Json::array();
  if (!registered)
    warnings.push_back(registered.error().message() + ": these are the nodes of this one's config, asked one by one");
  answer(client, Json{{"nodes", std::move(list)},
                      {"store", store_word(registered.has_value())},
                      {"warnings", std::move(warnings)}});
}

namespace {

/// The cluster's pods as its nodes themselves tell them: without the store nobody knows of the others.
void serve_pods_without_store(const Api& api, Stream& client, Json list, const Error& why) {
  std::vector<std::string> peers;
  for (const Peer& peer : api.links.config().peers) peers.push_back(peer.name);
  Json warnings = Json::array({why.message() + ": these are the pods of the nodes that answer"});
  for (const auto& [peer, found] : ask_all(api, peers, "/v1/pods?local")) {
    if (!found) warnings.push_back(found.error().message());
    if (!found || !found->contains("pods")) continue;
    for (const Json& pod : (*found)["pods"])
      if (pod.is_object()) list.push_back(pod);
  }
  for (Json& pod : list) pod["store"] = store_word(false);
  answer(client, Json{{"pods", std::move(list)}, {"store", store_word(false)}, {"warnings", std::move(warnings)}});
}

}  // namespace

void change_trust(const Api& api, Stream& client, const http::Request& request) {
  if (api.membership == nullptr)
    return answer(client,
                  Error{ErrorKind::refused,
                        fmt::format("node {} speaks plain TCP: nobody has a certificate", api.links.config().node), 0,
                        "[tls] in its config"});
  const auto change = [&]() -> Result<Json> {
    const Json json = TRY(parse_json(request.body));
    if (TRY(flag_field(json, "renew"))) TRY(api.membership->renew());
    if (!TRY(flag_field(json, "reload"))) return Json{{"peers", Json::array()}};
    TRY(api.membership->reload());
    Json told = Json::array();
    for (const auto& [node, outcome] : api.membership->spread())
      told.push_back(
          {{"name", node}, {"told", outcome.has_value()}, {"error", outcome ? "" : outcome.error().message()}});
    return Json{{"peers", std::move(told)}};
  };
  const auto done = change();
  done ? answer(client, *done) : answer(client, done.error());
}

void serve_pods(const Api& api, Stream& client, bool local) {
  Json mine = local_pods(api);
  if (local) return answer(client, Json{{"pods", std::move(mine)}, {"warnings", Json::array()}});
  auto records = api.store.list();
  if (!records) return serve_pods_without_store(api, client, std::move(mine), records.error());
  std::erase_if(*records, [&](const store::Record& record) { return !api.sees(record.user); });
  const std::string& self = api.links.config().node;
  std::vector<std::string> owners;
  for (const auto& record : *records)
    if (record.owner != self && std::ranges::find(owners, record.owner) == owners.end()) owners.push_back(record.owner);
  std::map<std::string, Json> details;  // by id: a pod that moves right now may be seen twice or not at all
  const auto add = [&](const Json& pods) {
    for (const Json& pod : pods) details[text_field(pod, "id").value_or("")] = pod;
  };
  add(mine);
  Json warnings = Json::array();
  std::map<std::string, const char*> silent;
  for (const auto& [owner, found] : ask_all(api, owners, "/v1/pods?local")) {
    if (found && found->contains("pods")) add((*found)["pods"]);
    if (found) continue;
    silent[owner] = "unreachable";
    warnings.push_back(found.error().message());
  }
  // Nobody has heard of it, or only we can't reach it: the registry knows.
  if (const auto nodes = silent.empty() ? std::map<std::string, Json>() : registered_nodes(api.store); nodes)
    for (auto& [owner, state] : silent)
      if (const auto node = nodes->find(owner); node != nodes->end() && node->second["state"] == "away") state = "away";
  Json list = Json::array();
  for (const auto& record : *records) {
    const auto found = details.find(record.id);
    const auto quiet = silent.find(record.owner);
    const char* missing_here = api.pods.expected(record.pod) ? "arriving" : "lost";
    Json json = found != details.end() ? found->second
                                       : to_json(record, quiet != silent.end()  ? quiet->second
                                                         : record.owner == self ? missing_here
                                                                                : "unknown");
    json["epoch"] = record.epoch;
    list.push_back(std::move(json));
  }
  answer(client, Json{{"pods", std::move(list)}, {"store", store_word(true)}, {"warnings", std::move(warnings)}});
}

}  // namespace godwit::node
