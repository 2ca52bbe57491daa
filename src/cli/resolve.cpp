#include "cli/commands.hpp"

namespace godwit::cli {
namespace {

/// What each node that answers says of itself under `key`, with the node's name.
Json all_of(const Json& nodes, const char* key) {
  Json all = Json::array();
  for (const Json& node : nodes) {
    if (!node.contains(key)) continue;
    for (Json entry : node[key]) {
      entry["node"] = node["name"];
      all.push_back(std::move(entry));
    }
  }
  return all;
}

int list(const Common& common, const Client& client) {
  const auto shown = client.request("GET", "/v1/nodes?fresh");
  if (!shown) return complain(common, shown.error());
  const Json doubts = all_of((*shown)["nodes"], "doubts"), left = all_of((*shown)["nodes"], "remainders");
  if (common.json) {
    print_json({{"doubts", doubts}, {"remainders", left}});
    return exit_code::ok;
  }
  std::vector<std::vector<std::string>> rows{{"NODE", "POD", "WHAT", "OTHER NODE", "FOR"}};
  for (const Json& doubt : doubts)
    rows.push_back({text_of(doubt, "node"), text_of(doubt, "pod"), "in doubt, frozen", text_of(doubt, "peer"),
                    fmt::format("{} s", doubt["seconds"].dump())});
  for (const Json& rest : left)
    rows.push_back({text_of(rest, "node"), text_of(rest, "pod"), "has left pages", text_of(rest, "destination"),
                    fmt::format("{} s", rest["seconds"].dump())});
  if (rows.size() == 1)
    fmt::print("nothing is in doubt, and nothing is left behind\n");
  else
    print_table(rows);
  return exit_code::ok;
}

}  // namespace

int resolve(const Common& common, const std::string& pod, const std::string& place) {
  const Client client(common);
  if (pod.empty()) return list(common, client);
  if (place.empty())
    return complain(common, Error{ErrorKind::invalid, "what of it?", 0, "say --here, --there or --drop"});
  const auto done = client.request("POST", "/v1/node/resolve", Json{{"pod", pod}, {"place", place}});
  if (!done) return complain(common, done.error());
  if (common.json)
    print_json(*done);
  else
    fmt::print("{}\n", pod);
  return exit_code::ok;
}

}  // namespace godwit::cli
