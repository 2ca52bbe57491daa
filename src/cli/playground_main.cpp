#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/playground_parts.hpp"

namespace godwit::cli {

namespace {

using nlohmann::json;

struct Chosen {
  std::string name = "default";
  bool as_json = false;
  bool no_daemon = false;
  playground::UpOptions up;
  std::string host, action;
  std::vector<std::string> command;
};

int complain(const Error& error) {
  fmt::print(stderr, "godwit playground: {}\n", error.message());
  switch (error.kind) {
    case ErrorKind::invalid:
      return 2;
    case ErrorKind::not_found:
      return 3;
    default:
      return 1;
  }
}

json describe(const playground::State& state) {
  json hosts = json::array();
  bool whole = state.complete && playground::alive(state.wire, state.wire_start);
  for (const auto& host : state.hosts) {
    const bool there = playground::alive(host.pid, host.start);
    whole &= there;
    json entry{{"name", host.name},
               {"kind", host.node ? "node" : "host"},
               {"address", host.address4},
               {"address6", host.address6},
               {"state", there ? "up" : "down"},
               {"pid", host.pid},
               {"directory", playground::directory_of(state.name, host.name)}};
    if (host.node) {
      const bool running = playground::alive(host.daemon, host.daemon_start);
      entry["daemon"] = json{{"state", running ? "running" : "stopped"}, {"pid", running ? host.daemon : 0}};
    }
    if (!host.store_address.empty()) {
      const bool running = playground::alive(host.store, host.store_start);
      entry["store"] = json{{"state", running ? "running" : "stopped"},
                            {"pid", running ? host.store : 0},
                            {"address", host.store_address}};
    }
    hosts.push_back(entry);
  }
  return {{"name", state.name}, {"state", whole ? "up" : "broken"}, {"hosts", hosts}};
}

void print(const json& playground) {
  fmt::print("playground {}: {}\n", playground["name"].get<std::string>(), playground["state"].get<std::string>());
  for (const auto& host : playground["hosts"])
    fmt::print("  {:<8} {:<12} {:<10} {:<6} {}{}\n", host["name"].get<std::string>(),
               host["address"].get<std::string>(), host["address6"].get<std::string>(),
               host["state"].get<std::string>(),
               host.contains("daemon") ? "godwitd " + host["daemon"]["state"].get<std::string>() : "",
               host.contains("store") ? ", etcd " + host["store"]["state"].get<std::string>() : "");
}

int up(Chosen& chosen) {
  chosen.up.daemons = !chosen.no_daemon;
  chosen.up.say = [&](const std::string& line) {
    fmt::print(chosen.as_json ? stderr : stdout, "{}\n", line);
    std::fflush(stdout);
  };
  const auto made = playground::up(chosen.name, chosen.up);
  if (!made) return complain(made.error());
  const auto state = playground::load(chosen.name);
  if (!state) return complain(state.error());
  if (chosen.as_json)
    fmt::print("{}\n", describe(*state).dump(2));
  else if (!*made)
    fmt::print("playground {} is up already\n", chosen.name);
  else
    fmt::print("playground {} is up; try: godwit playground exec a -- godwit nodes\n", chosen.name);
  return 0;
}

int down(const Chosen& chosen) {
  const auto removed = playground::down(chosen.name);
  if (!removed) return complain(removed.error());
  if (chosen.as_json)
    fmt::print("{}\n", json{{"name", chosen.name}, {"state", "down"}, {"removed", *removed}}.dump());
  else
    fmt::print("playground {} {}\n", chosen.name, *removed ? "is down" : "was not there");
  return 0;
}

int status(const Chosen& chosen, bool all) {
  std::vector<std::string> names{chosen.name};
  if (all) {
    auto found = playground::names();
    if (!found) return complain(found.error());
    names = *found;
  }
  json list = json::array();
  for (const auto& name : names) {
    const auto state = playground::load(name);
    if (!state && !all) return complain(state.error());
    if (state) list.push_back(describe(*state));
  }
  if (chosen.as_json)
    fmt::print("{}\n", (all ? list : list[0]).dump(2));
  else if (list.empty())
    fmt::print("no playground\n");
  else
    for (const auto& playground : list) print(playground);
  return 0;
}

int exec(const Chosen& chosen) {
  const auto code = playground::exec(chosen.name, chosen.host, chosen.command);
  return code ? *code : complain(code.error());
}

int finish(const Result<void>& done) {
  return done ? 0 : complain(done.error());
}

int daemon(const Chosen& chosen) {
  return finish(chosen.action == "start" ? playground::start_daemon(chosen.name, chosen.host)
                                         : playground::stop_daemon(chosen.name, chosen.host, chosen.action == "kill"));
}

int store(const Chosen& chosen) {
  return finish(chosen.action == "start" ? playground::start_store(chosen.name, chosen.host)
                                         : playground::stop_store(chosen.name, chosen.host, chosen.action == "kill"));
}

}  // namespace

int playground_main(const std::vector<std::string>& arguments) {
  CLI::App app{"Several machines on one: nodes with a godwitd each, and a client, on a network of their own.",
               "godwit playground"};
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  godwit playground up --nodes 3\n"
      "  godwit playground exec a -- godwit run --name web --detach -- python3 -m http.server 80\n"
      "  godwit playground exec a -- godwit migrate web b\n"
      "  godwit playground link b rate=1gbit\n"
      "  godwit playground daemon kill b\n"
      "  godwit playground up --store etcd\n"
      "  godwit playground store kill b\n"
      "  godwit playground down");
  Chosen chosen;
  bool all = false;
  const auto common = [&](CLI::App* command) {
    command->add_option("--name", chosen.name, "which playground; several can be up")->capture_default_str();
    command->add_flag("--json", chosen.as_json, "print JSON");
    return command;
  };
  auto* up_command = common(app.add_subcommand("up", "make the machines and start their daemons"));
  up_command->add_option("--nodes", chosen.up.nodes, "how many nodes (a, b, c, …)")->capture_default_str();
  up_command->add_option("--mtu", chosen.up.mtu, "of every network device")->capture_default_str();
  up_command->add_option("--godwitd", chosen.up.godwitd, "the daemon's binary (default: beside this one)");
  up_command
      ->add_option("--store", chosen.up.store,
                   "sqlite: on the first node; etcd: a cluster of three, on the first nodes")
      ->check(CLI::IsMember({"sqlite", "etcd"}))
      ->capture_default_str();
  up_command->add_flag("--plain", chosen.up.plain,
                       "no TLS between the nodes: a shared key, and who sees the wire reads all");
  up_command->add_flag("--no-daemon", chosen.no_daemon, "machines only");
  auto* down_command = common(app.add_subcommand("down", "remove all of it, also after a crash"));
  auto* status_command = common(app.add_subcommand("status", "what there is"));
  status_command->add_flag("--all", all, "every playground of this machine");
  auto* exec_command = common(app.add_subcommand("exec", "run a command on a machine: exec HOST -- CMD"));
  exec_command->add_option("HOST", chosen.host, "a, b, c, … or client")->required();
  exec_command->add_option("CMD", chosen.command, "what to run")->required();
  auto* daemon_command = common(app.add_subcommand("daemon", "start, stop (SIGTERM) or kill a node's godwitd"));
  daemon_command->add_option("ACTION", chosen.action)->required()->check(CLI::IsMember({"start", "stop", "kill"}));
  daemon_command->add_option("NODE", chosen.host)->required();
  auto* store_command = common(app.add_subcommand("store", "start, stop (SIGTERM) or kill a node's member of etcd"));
  store_command->add_option("ACTION", chosen.action)->required()->check(CLI::IsMember({"start", "stop", "kill"}));
  store_command->add_option("NODE", chosen.host)->required();
  auto* link_command = common(app.add_subcommand("link", "a machine's cable: up, down, rate=1gbit, rate=none"));
  link_command->add_option("HOST", chosen.host)->required();
  link_command->add_option("SETTING", chosen.action)->required();

  // What follows the command's own words is the command's, options included.
  std::vector<std::string> words = arguments;
  std::vector<std::string> rest;
  if (const auto end = std::find(words.begin(), words.end(), "--"); end != words.end() && words.front() == "exec") {
    rest.assign(end + 1, words.end());
    words.erase(end, words.end());
    if (!rest.empty()) exec_command->get_option("CMD")->required(false);
  }
  try {
    std::reverse(words.begin(), words.end());
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  chosen.command.insert(chosen.command.end(), rest.begin(), rest.end());
  if (up_command->parsed()) return up(chosen);
  if (down_command->parsed()) return down(chosen);
  if (status_command->parsed()) return status(chosen, all);
  if (exec_command->parsed()) return exec(chosen);
  if (daemon_command->parsed()) return daemon(chosen);
  if (store_command->parsed()) return store(chosen);
  (void)link_command;
  return finish(playground::set_link(chosen.name, chosen.host, chosen.action));
}

}  // namespace godwit::cli
