#include "node/registry.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/caught.hpp"
#include "node/starter.hpp"
#include "node/version.hpp"

namespace godwit::node {
namespace {

constexpr const char* kind = "node";

std::uint64_t memory_total() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::int64_t now_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

/// Where this node says that it listens. For all interfaces that is no address: the host's name has to do.
std::string own_address(const Config& config, const std::string& host) {
  const bool everywhere = config.listen == "0.0.0.0" || config.listen == "::";
  const std::string& name = everywhere ? host : config.listen;
  const bool v6 = name.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", name, config.port) : fmt::format("{}:{}", name, config.port);
}

}  // namespace

Json describe_node(const Config& config, const Pods& pods, const Starter& starter) {
  utsname name{};
  ::uname(&name);
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  return {{"name", config.node},
          {"state", "ok"},
          {"version", version},
          {"kernel", name.release},
          {"machine", name.machine},
          {"address", own_address(config, name.nodename)},
          {"cpus", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"load", load},
          {"memory_total", memory_total()},
          {"memory_available", memory_available()},
          {"pods", pods.list().size()},
          {"store", config.store},
          {"labels", config.labels},
          {"groups", config.groups},
          {"guests", config.guests},
          {"draining", starter.draining()},
          {"seen_ms", now_ms()}};
}

Registry::Registry(store::Store& store, std::string node, std::function<Json()> describe)
    : store_(store),
      node_(std::move(node)),
      describe_(std::move(describe)),
      thread_([this] { keep_going("the registry", [this] { work(); }); }) {}

Registry::~Registry() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
  // A store that is away isn't waited for: the lease tells the others, too.
  if (!store_answers_) return;
  Json last = describe_();
  last["state"] = "away";
  (void)write(std::move(last));
}

bool Registry::write(Json json) {
  return store_.put({.kind = kind, .key = node_, .value = dump(json)}, {.lease = lease}).has_value();
}

void Registry::work() {
  for (;;) {
    store_answers_ = write(describe_());
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, interval, [this] { return ending_; })) return;
  }
}

Result<std::map<std::string, Json>> registered_nodes(store::Store& store) {
  std::map<std::string, Json> nodes;
  for (const auto& note : TRY(store.notes(kind))) {
    auto json = parse_json(note.value);
    // Written by another node, maybe of another version: what can't be read says at least that there is one.
    if (!json || !json->is_object()) json = Json::object();
    (*json)["name"] = note.key;
    if (note.away || text_field(*json, "state").value_or("").empty()) (*json)["state"] = "away";
    nodes[note.key] = std::move(*json);
  }
  return nodes;
}

void sort_by_load(std::vector<std::string>& nodes, const std::map<std::string, Json>& registered) {
  // What other nodes have written may be anything.
  const auto place = [&](const std::string& node) -> std::pair<int, double> {
    const auto found = registered.find(node);
    if (found == registered.end()) return {1, 0};
    const Json& json = found->second;
    const bool takes = text_field(json, "state").value_or("") == "ok" &&
                       !flag_field(json, "draining").value_or(false) && flag_field(json, "guests", true).value_or(true);
    const auto load = json.find("load");
    const double known = load != json.end() && load->is_number() ? load->get<double>() : 0;
    return {takes ? 0 : 2,
            known / static_cast<double>(std::max<std::int64_t>(number_field(json, "cpus", 1).value_or(1), 1))};
  };
  std::ranges::stable_sort(nodes, {}, place);
}

Result<void> forget_node(store::Store& store, const std::string& name) {
  const auto nodes = TRY(registered_nodes(store));
  const auto found = nodes.find(name);
  if (found == nodes.end())
    return std::unexpected(Error{ErrorKind::not_found, fmt::format("no node named '{}' is registered", name), 0,
                                 "godwit nodes lists them"});
  if (text_field(found->second, "state").value_or("") != "away")
    return std::unexpected(
        Error{ErrorKind::refused, fmt::format("node {} is there", name), 0, "stop its godwitd first"});
  return store.erase(kind, name);
}

}  // namespace godwit::node
