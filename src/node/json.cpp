#include "node/json.hpp"

#include <array>
#include <cmath>

#include "control/messages.hpp"
#include "kernel/capabilities.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t arguments_limit = 4096;
constexpr std::size_t argument_limit = 128 * KiB;  // MAX_ARG_STRLEN

constexpr std::array<const char*, 9> kinds{"failed",      "invalid", "not_found", "refused",  "gone",
                                           "unreachable", "timeout", "busy",      "cancelled"};

Result<std::vector<std::string>> texts_field(const Json& json, const char* name) {
  std::vector<std::string> all;
  const auto found = json.find(name);
  if (found == json.end()) return all;
  if (!found->is_array() || found->size() > arguments_limit)
    return fail(ErrorKind::invalid, "'{}' must be a list of strings, {} at most", name, arguments_limit);
  for (const Json& item : *found) {
    if (!item.is_string() || item.get_ref<const std::string&>().size() > argument_limit ||
        item.get_ref<const std::string&>().find('\0') != std::string::npos)
      return fail(ErrorKind::invalid, "'{}' must be a list of strings", name);
    all.push_back(item.get<std::string>());
  }
  return all;
}

Json spans(const std::vector<migrate::Span>& all) {
  Json list = Json::array();
  for (const auto& span : all) list.push_back({{"name", span.name}, {"us", span.us}});
  return list;
}

}  // namespace

Result<Json> parse_json(const std::string& text) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return fail(ErrorKind::invalid, "that is not JSON");
  return json;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

const char* to_string(ErrorKind kind) {
  return kinds.at(static_cast<std::size_t>(kind));
}

ErrorKind error_kind(const std::string& name) {
  for (std::size_t i = 0; i < kinds.size(); i++)
    if (name == kinds[i]) return static_cast<ErrorKind>(i);
  return ErrorKind::failed;
}

Json to_json(const Error& error) {
  return {{"error",
           {{"kind", to_string(error.kind)},
            {"message", error.message()},
            {"what", error.what},
            {"hint", error.hint},
            {"code", error.code}}}};
}

std::optional<Error> error_in(const Json& json) {
  if (!json.is_object() || !json.contains("error") || !json["error"].is_object()) return {};
  const Json& error = json["error"];
  return Error{error_kind(text_field(error, "kind").value_or("failed")),
               text_field(error, "what").value_or("the daemon gave no reason"),
               static_cast<int>(number_field(error, "code").value_or(0)), text_field(error, "hint").value_or("")};
}

int http_status(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid:
      return 400;
    case ErrorKind::not_found:
      return 404;
    case ErrorKind::refused:
    case ErrorKind::busy:
    case ErrorKind::cancelled:
      return 409;
    case ErrorKind::gone:
      return 410;
    case ErrorKind::unreachable:
      return 503;
    case ErrorKind::timeout:
      return 504;
    case ErrorKind::failed:
      break;
  }
  return 500;
}

Json to_json(const migrate::Progress& progress) {
  return {{"phase", progress.phase},           {"round", progress.round},
          {"pages_sent", progress.pages_sent}, {"bytes_sent", progress.bytes_sent},
          {"bytes_left", progress.bytes_left}, {"bytes_per_second", progress.bytes_per_second}};
}

Json to_json(const migrate::Report& report) {
  Json rounds = Json::array();
  for (const auto& round : report.rounds)
    rounds.push_back(
        {{"pages", round.pages}, {"zero_pages", round.zero_pages}, {"bytes", round.bytes}, {"us", round.us}});
  Json residuals = Json::array();
  for (const auto& residual : report.residuals)
    residuals.push_back({{"kind", residual.kind}, {"reason", residual.reason}, {"ends", residual.ends}});
  return {{"pod", report.pod},
          {"source", report.source},
          {"destination", report.destination},
          {"strategy", report.strategy},
          {"asked", report.asked},
          {"moved", report.moved},
          {"error", report.error},
          {"freeze_us", report.freeze_us},
          {"total_us", report.total_us},
          {"bytes_sent", report.bytes_sent},
          {"rounds", rounds},
          {"pauses_us", report.pauses_us},
          {"phases", spans(report.phases)},
          {"freeze", spans(report.freeze)},
          {"residuals", residuals},
          {"refusals", report.refusals},
          {"expected_freeze_us", report.expected_freeze_us},
          {"expected_bytes", report.expected_bytes},
          {"expected_from", report.expected_from}};
}

Json to_json(const LocalPod& pod, const std::string& node) {
  const LocalPod::View view = pod.view();
  Json json{{"name", pod.spec.name},
            {"id", pod.spec.id},
            {"node", node},
            {"home", pod.spec.home},
            {"state", to_string(view.state)},
            {"hostname", pod.spec.hostname},
            {"addresses", pod.spec.network.addresses},
            {"mac", pod.spec.network.mac},
            {"command", pod.spec.program.arguments},
            {"terminal", pod.spec.program.terminal},
            {"input", pod.spec.program.input},
            {"memory_limit", pod.spec.memory_limit},
            {"cpu_limit", pod.spec.cpu_limit},
            {"needs", pod.spec.labels},
            {"uid", pod.spec.user.uid},
            {"user", pod::name_of(pod.spec.user.uid)},
            {"capabilities", kernel::to_text(pod.spec.capabilities)}};
  json["address"] = "";
  if (!pod.spec.network.addresses.empty()) {
    const std::string& first = pod.spec.network.addresses.front();
    json["address"] = first.substr(0, first.find('/'));
  }
  if (view.status) json["exit_code"] = exit_code(*view.status);
  if (!view.destination.empty()) json["destination"] = view.destination;
  if (!view.note.empty()) json["note"] = view.note;
  return json;
}

Json to_json(const store::Record& record, const std::string& state) {
  return {{"name", record.pod},   {"id", record.id},
          {"node", record.owner}, {"address", record.address},
          {"home", record.home},  {"epoch", record.epoch},
          {"state", state},       {"command", Json::array()},
          {"uid", record.user},   {"user", pod::name_of(record.user)}};
}

Result<std::string> text_field(const Json& json, const char* name, const std::string& otherwise) {
  const auto found = json.find(name);
  if (found == json.end() || found->is_null()) return otherwise;
  if (!found->is_string()) return fail(ErrorKind::invalid, "'{}' must be a string", name);
  return found->get<std::string>();
}

Result<std::int64_t> number_field(const Json& json, const char* name, std::int64_t otherwise) {
  const auto found = json.find(name);
  if (found == json.end() || found->is_null()) return otherwise;
  if (!found->is_number_integer()) return fail(ErrorKind::invalid, "'{}' must be a whole number", name);
  return found->get<std::int64_t>();
}

Result<bool> flag_field(const Json& json, const char* name, bool otherwise) {
  const auto found = json.find(name);
  if (found == json.end() || found->is_null()) return otherwise;
  if (!found->is_boolean()) return fail(ErrorKind::invalid, "'{}' must be true or false", name);
  return found->get<bool>();
}

Result<pod::Program> program_from(const Json& json) {
  if (!json.is_object()) return fail(ErrorKind::invalid, "a program is a JSON object");
  pod::Program program;
  program.arguments = TRY(texts_field(json, "command"));
  if (program.arguments.empty() || program.arguments[0].empty())
    return fail(ErrorKind::invalid, "'command' must name a program");
  program.environment = TRY(texts_field(json, "environment"));
  for (const std::string& entry : program.environment)
    if (entry.find('=') == std::string::npos || entry[0] == '=')
      return fail(ErrorKind::invalid, "environment '{}' is not NAME=value", entry);
  program.directory = TRY(text_field(json, "directory", "/"));
  if (program.directory.empty() || program.directory[0] != '/')
    return fail(ErrorKind::invalid, "directory '{}' is not absolute", program.directory);
  program.terminal = TRY(flag_field(json, "terminal"));
  program.input = TRY(flag_field(json, "input"));
  return program;
}

Result<NewPod> new_pod_from(const Json& json, const pod::User& caller) {
  NewPod wanted;
  wanted.user = caller;
  if (const auto name = TRY(text_field(json, "user")); !name.empty() && name != pod::name_of(caller.uid))
    wanted.user = TRY(pod::user_named(name));
  const auto capabilities = TRY(texts_field(json, "capabilities"));
  if (!capabilities.empty())
    wanted.capabilities = TRY(kernel::parse_capabilities(capabilities)) & kernel::bounding_capabilities();
  else if (wanted.user.is_root())
    wanted.capabilities = kernel::bounding_capabilities();
  if (!wanted.user.is_root() && wanted.capabilities != 0)
    return fail(ErrorKind::invalid, "only root's pods have capabilities");
  wanted.program = TRY(program_from(json));
  wanted.name = TRY(text_field(json, "name"));
  wanted.hostname = TRY(text_field(json, "hostname"));
  if (wanted.hostname.size() > 64) return fail(ErrorKind::invalid, "the host name is longer than 64 characters");
  const std::int64_t memory = TRY(number_field(json, "memory_limit"));
  if (memory < 0) return fail(ErrorKind::invalid, "'memory_limit' must not be negative");
  wanted.memory_limit = static_cast<std::uint64_t>(memory);
  const auto cpus = json.find("cpu_limit");
  if (cpus != json.end() && !cpus->is_null()) {
    if (!cpus->is_number() || !std::isfinite(cpus->get<double>()) || cpus->get<double>() < 0)
      return fail(ErrorKind::invalid, "'cpu_limit' must be a number of processors");
    wanted.cpu_limit = cpus->get<double>();
  }
  wanted.labels = TRY(texts_field(json, "needs"));
  if (wanted.labels.size() > control::list_limit)
    return fail(ErrorKind::invalid, "a pod can need {} labels at most", control::list_limit);
  for (const auto& label : wanted.labels)
    if (label.empty() || label[0] == '=' || label.size() > control::text_limit)
      return fail(ErrorKind::invalid, "'{}' is not LABEL or LABEL=value", label);
  return wanted;
}

}  // namespace godwit::node
