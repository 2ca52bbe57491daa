#include "cli/commands.hpp"

#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <thread>

#include "cli/session.hpp"
#include "node/stream.hpp"

namespace godwit::cli {
namespace {

constexpr std::chrono::seconds watch_interval{1};

/// Does the same for each pod; the exit code is that of the first that failed.
int for_each_pod(const Common& common, const std::vector<std::string>& pods,
                 const std::function<Result<Json>(const std::string&)>& work) {
  int code = exit_code::ok;
  Json results = Json::array();
  for (const std::string& pod : pods) {
    const auto done = work(pod);
    if (done) {
      results.push_back(*done);
      if (!common.json) fmt::print("{}\n", pod);
      continue;
    }
    Common plain = common;
    plain.json = false;
    const int failed = complain(plain, done.error());
    if (code == exit_code::ok) code = failed;
    Json error = node::to_json(done.error());
    error["name"] = pod;
    results.push_back(std::move(error));
  }
  if (common.json) print_json(results);
  return code;
}

std::string bytes_of(const Json& json, const char* name) {
  const auto bytes = node::number_field(json, name, -1);
  return bytes && *bytes >= 0 ? human_bytes(static_cast<std::uint64_t>(*bytes)) : "-";
}

std::string state_of(const Json& pod) {
  std::string state = text_of(pod, "state");
  if (pod.contains("exit_code")) state += fmt::format(" ({})", pod["exit_code"].dump());
  if (state == "leaving") state += " to " + text_of(pod, "destination");
  return state;
}

std::string number_text(const Json& json, const char* name) {
  const auto number = node::number_field(json, name, -1);
  return number && *number >= 0 ? std::to_string(*number) : "-";
}

/// "secure,zone=x"
std::string labels_text(const Json& node) {
  const Json labels = node.value("labels", Json::object());
  std::string text;
  for (const auto& [name, value] : labels.items()) {
    text += (text.empty() ? "" : ",") + name;
    if (value.is_string() && value != "") text += "=" + value.get<std::string>();
  }
  return text.empty() ? "-" : text;
}

/// "ok", "draining", "away since 2026-11-26 14:03:05".
std::string node_state(const Json& node) {
  const std::string state = text_of(node, "state");
  if (state == "ok") {
    std::string says = node.value("draining", false) ? "draining" : state;
    if (text_of(node, "store_state") == "away") says += ", without the store";
    return says;
  }
  const std::int64_t seen = node::number_field(node, "seen_ms").value_or(0);
  return state == "away" && seen > 0 ? "away since " + local_time(seen) : state;
}

}  // namespace

Result<std::uint64_t> parse_size(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  std::string unit(stop, end);
  std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return std::toupper(c); });
  if (unit.ends_with("IB"))
    unit.erase(unit.size() - 2);
  else if (unit.size() > 1 && unit.ends_with("B"))
    unit.pop_back();
  const std::string units = "KMGT";
  std::uint64_t factor = 1;
  if (unit.size() == 1 && units.find(unit[0]) != std::string::npos)
    factor = std::uint64_t{1} << (10 * (units.find(unit[0]) + 1));
  else if (!unit.empty() && unit != "B")
    factor = 0;
  if (error != std::errc{} || factor == 0 || !(value > 0) || value * static_cast<double>(factor) > 1e15)
    return std::unexpected(
        Error{ErrorKind::invalid, fmt::format("'{}' is not a size", text), 0, "512M, 1.5G or a number of bytes"});
  return static_cast<std::uint64_t>(value * static_cast<double>(factor));
}

Result<int> parse_signal(const std::string& text) {
  int number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc{} && stop == text.data() + text.size() && number >= 1 && number <= SIGRTMAX) return number;
  std::string name = text;
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::toupper(c); });
  if (name.starts_with("SIG")) name.erase(0, 3);
  for (int signal = 1; signal < SIGRTMIN; signal++) {
    const char* known = ::sigabbrev_np(signal);
    if (known != nullptr && name == known) return signal;
  }
  return std::unexpected(
      Error{ErrorKind::invalid, fmt::format("'{}' is not a signal", text), 0, "TERM, HUP, USR1 … or a number"});
}

namespace {

/// What a command has to show at one moment.
struct Shown {
  std::string text;  ///< for stdout
  std::vector<std::string> warnings;
  int code = exit_code::ok;
};

Shown shown_json(const Json& list, bool watched) {
  return {.text = (watched ? node::dump(list) : list.dump(2, ' ', false, Json::error_handler_t::replace)) + "\n"};
}

void note_store(const Json& answer, Shown& shown) {
  for (const Json& warning : answer.value("warnings", Json::array()))
    shown.warnings.push_back(warning.is_string() ? warning.get<std::string>() : warning.dump());
  if (text_of(answer, "store") == "away") shown.code = exit_code::store_away;
}

void print(const Shown& shown) {
  fmt::print("{}", shown.text);
  std::fflush(stdout);
  for (const auto& warning : shown.warnings) fmt::print(stderr, "godwit: {}\n", warning);
}

/// Waits for the next change in the store, and a second at most: load and memory don't stand there.
class ChangeWait {
 public:
  explicit ChangeWait(const Common& common) : common_(common) {}
  void operator()() {
    const auto begin = std::chrono::steady_clock::now();
    const auto answer = Client(common_).request("GET", fmt::format("/v1/changes?since={}", state_));
    const std::uint64_t now = answer ? number_of(*answer, "state") : 0;
    // Without the store nobody waited for us.
    if (!answer || (state_ != 0 && now == state_)) std::this_thread::sleep_until(begin + watch_interval);
    state_ = now;
  }

 private:
  const Common common_;
  std::uint64_t state_ = 0;
};

/// Shows it once; or, watched, over and over until a signal ends us: on a terminal in place, elsewhere whenever it is
/// new.
int show(const Common& common, bool watched, const std::function<Result<Shown>()>& look) {
  ChangeWait wait_for_change(common);
  const bool live = watched && ::isatty(STDOUT_FILENO) == 1;
  std::string last;
  for (bool first = true;; first = false) {
    auto shown = look();
    // Later on it is the daemon's restart, say: it comes back.
    if (!shown && (first || !watched)) return complain(common, shown.error());
    if (!shown) shown = Shown{.warnings = {shown.error().message()}};
    if (live) fmt::print("\033[H\033[2J");
    const std::string now = fmt::format("{}{}", shown->text, fmt::join(shown->warnings, "\n"));
    if (live || now != last) print(*shown);
    if (!watched) return shown->code;
    last = now;
    wait_for_change();
  }
}

Result<Shown> show_pods(const Common& common, const PsOptions& options) {
  const Json answer = TRY(Client(common).request("GET", options.local ? "/v1/pods?local" : "/v1/pods"));
  const Json pods = answer.value("pods", Json::array());
  Shown shown;
  if (common.json) {
    shown = shown_json(pods, options.watch);
  } else if (options.quiet) {
    for (const Json& pod : pods) shown.text += text_of(pod, "name") + "\n";
  } else {
    std::vector<std::vector<std::string>> rows{{"NAME", "USER", "NODE", "ADDRESS", "STATE", "MEMORY", "COMMAND"}};
    for (const Json& pod : pods) {
      const std::string address = text_of(pod, "address");
      std::string command = shell_line(pod.value("command", Json::array()));
      if (command.size() > 60) command = command.substr(0, 59) + "…";
      std::ranges::replace(command, '\n', ' ');
      rows.push_back({text_of(pod, "name"), text_of(pod, "user"), text_of(pod, "node"), address.empty() ? "-" : address,
                      state_of(pod), bytes_of(pod, "memory"), command});
    }
    shown.text = table(rows);
  }
  note_store(answer, shown);
  return shown;
}

Result<Shown> show_nodes(const Common& common, const NodesOptions& options) {
  const Json answer = TRY(Client(common).request("GET", "/v1/nodes"));
  const Json list = answer.value("nodes", Json::array());
  Shown shown;
  if (common.json) {
    shown = shown_json(list, options.watch);
  } else {
    std::vector<std::vector<std::string>> rows{
        {"NAME", "STATE", "PODS", "CPUS", "LOAD", "MEMORY", "FREE", "KERNEL", "LABELS", "ADDRESS"}};
    for (const Json& node : list) {
      const bool ok = text_of(node, "state") == "ok";
      rows.push_back({text_of(node, "name"), node_state(node), ok ? number_text(node, "pods") : "-",
                      number_text(node, "cpus"), ok ? fmt::format("{:.2f}", node.value("load", 0.0)) : "-",
                      bytes_of(node, "memory_total"), ok ? bytes_of(node, "memory_available") : "-",
                      text_of(node, "kernel").empty() ? "-" : text_of(node, "kernel"), labels_text(node),
                      node.value("self", false) ? "(this node)" : text_of(node, "address")});
    }
    shown.text = table(rows);
  }
  note_store(answer, shown);
  for (const Json& node : list)
    if (node.contains("error")) shown.warnings.push_back(text_of(node, "error"));
  return shown;
}

int forget_node(const Common& common, const std::string& node) {
  const auto done = Client(common).request("DELETE", "/v1/nodes/" + node::http::encode(node));
  if (!done) return complain(common, done.error());
  if (common.json)
    print_json(*done);
  else
    fmt::print("{} is forgotten\n", node);
  return exit_code::ok;
}

}  // namespace

int ps(const Common& common, const PsOptions& options) {
  return show(common, options.watch, [&] { return show_pods(common, options); });
}

int nodes(const Common& common, const NodesOptions& options) {
  if (!options.forget.empty()) return forget_node(common, options.forget);
  return show(common, options.watch, [&] { return show_nodes(common, options); });
}

int inspect(const Common& common, const std::vector<std::string>& pods) {
  const Client client(common);
  Json all = Json::array();
  for (const std::string& pod : pods) {
    const auto shown = client.request("GET", pod_target(pod));
    if (!shown) return complain(common, shown.error());
    all.push_back(*shown);
  }
  print_json(pods.size() == 1 ? all[0] : all);
  return exit_code::ok;
}

int stop(const Common& common, const std::vector<std::string>& pods, double grace_seconds) {
  const Client client(common);
  const Json body{{"grace_ms", static_cast<std::int64_t>(std::llround(grace_seconds * 1000))}};
  return for_each_pod(common, pods,
                      [&](const std::string& pod) { return client.request("POST", pod_target(pod, "/stop"), body); });
}

int kill(const Common& common, const std::vector<std::string>& pods, const std::string& signal) {
  const auto number = parse_signal(signal);
  if (!number) return complain(common, number.error());
  const Client client(common);
  return for_each_pod(common, pods, [&](const std::string& pod) {
    return client.request("POST", pod_target(pod, "/kill"), Json{{"signal", *number}});
  });
}

int remove(const Common& common, const std::vector<std::string>& pods, bool force) {
  const Client client(common);
  return for_each_pod(common, pods, [&](const std::string& pod) {
    return client.request("DELETE", pod_target(pod, force ? "?force" : ""));
  });
}

int wait(const Common& common, const std::vector<std::string>& pods) {
  const Client client(common);
  Json all = Json::array();
  int code = exit_code::ok;
  for (const std::string& pod : pods) {
    const auto ended = client.outwait("POST", pod_target(pod, "/wait"));
    if (!ended) return complain(common, ended.error());
    all.push_back(*ended);
    code = ended->value("exit_code", 0);
    if (!common.json) fmt::print("{}\n", code);
  }
  if (common.json) print_json(all);
  return code;
}

int logs(const Common& common, const std::string& pod, bool follow) {
  const Client client(common);
  std::optional<std::string> failed;
  const auto print = [&](const pod::Frame& frame) {
    const std::string text(frame.bytes.begin(), frame.bytes.end());
    if (frame.kind == node::frame::failure) failed = text;
    const bool output = frame.kind == pod::FrameKind::output || frame.kind == pod::FrameKind::terminal;
    if (!output && frame.kind != pod::FrameKind::error) return true;
    // In the order in which it was written, also where both go to the same place.
    FILE* to = output || common.json ? stdout : stderr;
    if (common.json)
      fmt::print("{}\n", node::dump(Json{{"stream", output ? "stdout" : "stderr"}, {"text", text}}));
    else
      std::fwrite(text.data(), 1, text.size(), to);
    return std::fflush(to) == 0;
  };
  if (const auto read = read_pod(client, {.pod = pod, .follow = follow}, print); !read)
    return complain(common, read.error());
  return failed ? complain(common, Error{ErrorKind::failed, *failed, 0, {}}) : exit_code::ok;
}

}  // namespace godwit::cli
