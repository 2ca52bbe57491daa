#include <unistd.h>

#include "cli/commands.hpp"
#include "cli/session.hpp"

namespace godwit::cli {
namespace {

/// What a shell would say when the program itself couldn't be started.
int run_exit_code(const Error& error) {
  const bool starting = error.what.find("start ") != std::string::npos;
  if (starting && error.code == ENOENT) return exit_code::no_program;
  if (starting && (error.code == EACCES || error.code == ENOEXEC || error.code == EISDIR))
    return exit_code::not_executable;
  return exit_code::run_failed;
}

/// TERM and the like, which only make sense where the terminal is.
void add_terminal(std::vector<std::string>& environment, bool terminal) {
  const char* term = std::getenv("TERM");
  if (terminal && term != nullptr) environment.push_back(std::string("TERM=") + term);
}

Result<void> resolve_environment(std::vector<std::string>& environment) {
  for (std::string& entry : environment) {
    if (entry.find('=') != std::string::npos) continue;
    const char* value = std::getenv(entry.c_str());
    if (value == nullptr) return fail(ErrorKind::invalid, "--env {}: it isn't set here, and has no value", entry);
    entry += std::string("=") + value;
  }
  return {};
}

int need_terminal(const Common& common) {
  complain(common, Error{ErrorKind::invalid, "-t needs a terminal, and stdin is none", 0, "leave -t out"});
  return exit_code::usage;
}

std::function<void(int)> pass_signals(const Client& client, const std::string& pod) {
  return [client, pod](int signal) {
    (void)client.request("POST", pod_target(pod, "/kill"), Json{{"signal", signal}});
  };
}

}  // namespace

int run(const Common& common, const RunOptions& options) {
  const Client client(common);
  if (options.terminal && !options.detach && ::isatty(STDIN_FILENO) == 0) return need_terminal(common);
  std::vector<std::string> environment = options.environment;
  if (const auto resolved = resolve_environment(environment); !resolved) return complain(common, resolved.error());
  add_terminal(environment, options.terminal);
  Json body{{"name", options.name},       {"hostname", options.hostname},        {"command", options.command},
            {"environment", environment}, {"directory", options.directory},      {"terminal", options.terminal},
            {"input", options.input},     {"cpu_limit", options.cpus},           {"needs", options.needs},
            {"user", options.user},       {"capabilities", options.capabilities}};
  if (!options.memory.empty()) {
    const auto bytes = parse_size(options.memory);
    if (!bytes) return complain(common, bytes.error());
    body["memory_limit"] = *bytes;
  }
  const auto created = client.request("POST", "/v1/pods", body);
  if (!created) {
    complain(common, created.error());
    return created.error().kind == ErrorKind::invalid ? exit_code::usage : run_exit_code(created.error());
  }
  const std::string name = created->value("name", "");
  if (options.detach) {
    if (common.json)
      print_json(*created);
    else
      fmt::print("{}\n", name);
    return exit_code::ok;
  }

  Session session{.input = options.input, .terminal = options.terminal, .on_signal = {}};
  if (!options.terminal) session.on_signal = pass_signals(client, name);
  const auto end = join_pod(client, {.pod = name}, session);
  if (!end) {
    complain(common, std::move(Error(end.error())).within("pod " + name));
    return exit_code::run_failed;
  }
  if (end->detached) {
    fmt::print(stderr, "\ngodwit: pod {} goes on; godwit attach {} to come back\n", name, name);
    return exit_code::ok;
  }
  if (!options.keep) {
    const auto removed = client.request("DELETE", pod_target(name));
    if (!removed) complain(common, std::move(Error(removed.error())).within("pod " + name + " has ended"));
  }
  return node::exit_code(end->status);
}

int attach(const Common& common, const std::string& pod, bool no_input, bool replay) {
  const Client client(common);
  const auto shown = client.request("GET", pod_target(pod));
  if (!shown) return complain(common, shown.error());
  Session session;
  session.terminal = shown->value("terminal", false) && ::isatty(STDIN_FILENO) == 1 && !no_input;
  session.input = shown->value("input", false) && !no_input;
  const auto end = join_pod(client, {.pod = pod, .tail = !replay}, session);
  if (!end) return complain(common, end.error());
  return end->detached ? exit_code::ok : node::exit_code(end->status);
}

int exec(const Common& common, const ExecOptions& options) {
  const Client client(common);
  if (options.terminal && ::isatty(STDIN_FILENO) == 0) return need_terminal(common);
  std::vector<std::string> environment = options.environment;
  if (const auto resolved = resolve_environment(environment); !resolved) return complain(common, resolved.error());
  add_terminal(environment, options.terminal);
  const Json body{{"command", options.command},
                  {"environment", environment},
                  {"directory", options.directory},
                  {"terminal", options.terminal},
                  {"input", options.input}};
  const auto started = client.request("POST", pod_target(options.pod, "/exec"), body);
  if (!started) {
    const int code = complain(common, started.error());
    const int of_program = run_exit_code(started.error());
    return code == exit_code::failed || of_program != exit_code::run_failed ? of_program : code;
  }
  const auto end = join_pod(client, {.pod = options.pod, .execution = started->value("execution", "")},
                            {.input = options.input, .terminal = options.terminal, .on_signal = {}});
  if (!end) {
    complain(common, end.error());
    return exit_code::run_failed;
  }
  return end->detached ? exit_code::ok : node::exit_code(end->status);
}

}  // namespace godwit::cli
