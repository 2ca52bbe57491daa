#include "cli/commands.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "node/stream.hpp"

namespace godwit::cli {
namespace {

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

std::string text_of(const Json& json, const char* name) {
  return node::text_field(json, name).value_or("");
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

int ps(const Common& common, bool local, bool quiet) {
  const auto answer = Client(common).request("GET", local ? "/v1/pods?local" : "/v1/pods");
  if (!answer) return complain(common, answer.error());
  const Json pods = answer->value("pods", Json::array());
  for (const Json& warning : answer->value("warnings", Json::array()))
    fmt::print(stderr, "godwit: {}\n", warning.is_string() ? warning.get<std::string>() : warning.dump());
  if (common.json) {
    print_json(pods);
    return exit_code::ok;
  }
  std::vector<std::vector<std::string>> rows{{"NAME", "NODE", "ADDRESS", "STATE", "MEMORY", "COMMAND"}};
  for (const Json& pod : pods) {
    const std::string address = text_of(pod, "address");
    std::string command = shell_line(pod.value("command", Json::array()));
    if (command.size() > 60) command = command.substr(0, 59) + "…";
    std::ranges::replace(command, '\n', ' ');
    rows.push_back({text_of(pod, "name"), text_of(pod, "node"), address.empty() ? "-" : address, state_of(pod),
                    bytes_of(pod, "memory"), command});
  }
  if (quiet) {
    for (const Json& pod : pods) fmt::print("{}\n", text_of(pod, "name"));
  } else {
    print_table(rows);
  }
  return exit_code::ok;
}

int nodes(const Common& common) {
  const auto answer = Client(common).request("GET", "/v1/nodes");
  if (!answer) return complain(common, answer.error());
  const Json list = answer->value("nodes", Json::array());
  if (common.json) {
    print_json(list);
    return exit_code::ok;
  }
  std::vector<std::vector<std::string>> rows{
      {"NAME", "STATE", "PODS", "CPUS", "LOAD", "MEMORY", "FREE", "KERNEL", "ADDRESS"}};
  for (const Json& node : list) {
    const bool ok = text_of(node, "state") == "ok";
    rows.push_back({text_of(node, "name"), ok && node.value("draining", false) ? "draining" : text_of(node, "state"),
                    ok ? node["pods"].dump() : "-", ok ? node["cpus"].dump() : "-",
                    ok ? fmt::format("{:.2f}", node.value("load", 0.0)) : "-", bytes_of(node, "memory_total"),
                    bytes_of(node, "memory_available"), ok ? text_of(node, "kernel") : "-",
                    node.contains("address") ? text_of(node, "address") : "(this node)"});
  }
  print_table(rows);
  for (const Json& node : list)
    if (node.contains("error")) fmt::print(stderr, "godwit: {}\n", text_of(node, "error"));
  return exit_code::ok;
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
    const auto ended = client.request("POST", pod_target(pod, "/wait"));
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
  auto answer = client.stream("GET", pod_target(pod, follow ? "/logs?frames&follow" : "/logs?frames"));
  if (!answer) return complain(common, answer.error());
  Bytes pending;
  char buffer[65536];
  for (;;) {
    const auto got = answer->read(buffer, sizeof buffer, node::never());
    if (!got) return complain(common, got.error());
    if (*got == 0) return exit_code::ok;
    pending.insert(pending.end(), buffer, buffer + *got);
    for (;;) {
      pod::Frame frame;
      const auto taken = pod::take_frame(pending, frame);
      if (!taken) return complain(common, taken.error());
      if (!*taken) break;
      if (frame.kind == node::frame::failure)
        return complain(common, Error{ErrorKind::failed, std::string(frame.bytes.begin(), frame.bytes.end()), 0, {}});
      const bool output = frame.kind == pod::FrameKind::output || frame.kind == pod::FrameKind::terminal;
      if (!output && frame.kind != pod::FrameKind::error) continue;
      if (common.json) {
        const std::string text(frame.bytes.begin(), frame.bytes.end());
        fmt::print("{}\n", node::dump(Json{{"stream", output ? "stdout" : "stderr"}, {"text", text}}));
        continue;
      }
      // In the order in which it was written, also where both go to the same place.
      FILE* to = output ? stdout : stderr;
      std::fwrite(frame.bytes.data(), 1, frame.bytes.size(), to);
      std::fflush(to);
    }
    if (common.json) std::fflush(stdout);
  }
}

}  // namespace godwit::cli
