#include "node/api.hpp"

#include <fmt/ranges.h>
#include <signal.h>

#include <charconv>

#include "base/log.hpp"
#include "kernel/procfs.hpp"
#include "node/api_parts.hpp"
#include "node/caller.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds request_time{30};
constexpr std::chrono::milliseconds peer_time{5000};
/// How long a pod that is ours by its record may take to be in the table: it is being made, or has just been committed.
constexpr std::chrono::seconds arrival_time{10};
constexpr int attempts = 20;
constexpr std::chrono::milliseconds change_time{1000};
constexpr std::chrono::milliseconds between_attempts{50};

/// One call about a pod that is here. `gone` when it left in between.
using Call = std::function<Result<Json>(const Api&, const http::Request&, const std::shared_ptr<LocalPod>&)>;

Json processes_of(pod::Pod& pod) {
  Json list = Json::array();
  const auto all = pod.workload().processes();
  if (!all) return list;
  for (const HostPid process : *all) {
    const auto status = kernel::read_status(process);
    if (!status) continue;
    list.push_back({{"pid", status->ns_tgid.empty() ? 0 : status->ns_tgid.back()},
                    {"host_pid", process.value},
                    {"name", status->name},
                    {"state", std::string(1, status->state)},
                    {"resident", status->resident_bytes}});
  }
  return list;
}

Result<Json> inspect(const Api& api, const http::Request&, const std::shared_ptr<LocalPod>& pod) {
  Json json = to_json(*pod, api.links.config().node);
  json["environment"] = pod->spec.program.environment;
  json["directory"] = pod->spec.program.directory;
  json["gateway4"] = pod->spec.network.gateway4;
  json["gateway6"] = pod->spec.network.gateway6;
  json["log_directory"] = pod->log_directory;
  const auto record = api.store.get(pod->spec.name);
  if (record && *record) json["epoch"] = (*record)->epoch;
  if (!record) json["note"] = record.error().message();
  // Without patience: a pod in a migration is shown without its processes.
  (void)pod->with(
      [&](pod::Pod& held) -> Result<void> {
        json["init"] = held.init().value;
        json["upper"] = held.upper();
        json["cgroup"] = held.workload().path();
        json["processes"] = processes_of(held);
        return {};
      },
      std::chrono::seconds(0));
  return json;
}

Result<Json> remove(const Api& api, const http::Request& request, const std::shared_ptr<LocalPod>& pod) {
  const bool force = request.flag("force");
  // What is to be gone needn't arrive first.
  if (force) (void)api.moves.cancel(pod->spec.name);
  TRY(api.pods.remove(pod, force));
  return Json{{"name", pod->spec.name}, {"removed", true}};
}

Result<Json> body_of(const http::Request& request) {
  if (request.body.empty()) return Json::object();
  Json json = TRY(parse_json(request.body));
  if (!json.is_object()) return fail(ErrorKind::invalid, "the body must be a JSON object");
  return json;
}

Result<Json> kill(const Api& api, const http::Request& request, const std::shared_ptr<LocalPod>& pod) {
  const Json body = TRY(body_of(request));
  const std::int64_t number = TRY(number_field(body, "signal", SIGTERM));
  if (number < 1 || number > SIGRTMAX) return fail(ErrorKind::invalid, "{} is not a signal", number);
  TRY(api.pods.signal(*pod, static_cast<int>(number)));
  return Json{{"name", pod->spec.name}, {"signal", number}};
}

Result<Json> hang_up(const Api&, const http::Request& request, const std::shared_ptr<LocalPod>& pod) {
  const std::string& id = request.path[4];
  TRY(close_execution(*pod, id));
  return Json{{"name", pod->spec.name}, {"execution", id}};
}

Result<Json> stop(const Api& api, const http::Request& request, const std::shared_ptr<LocalPod>& pod) {
  const Json body = TRY(body_of(request));
  const std::int64_t grace = TRY(number_field(body, "grace_ms", 10000));
  if (grace < 0 || grace > 3600 * 1000) return fail(ErrorKind::invalid, "'grace_ms' must be up to an hour");
  TRY(api.pods.stop(*pod, std::chrono::milliseconds(grace)));
  const auto view = pod->view();
  Json json{{"name", pod->spec.name}, {"state", to_string(view.state)}};
  if (view.status) json["exit_code"] = exit_code(*view.status);
  return json;
}

Result<Json> cancel(const Api& api, const http::Request&, const std::shared_ptr<LocalPod>& pod) {
  TRY(api.moves.cancel(pod->spec.name));
  return Json{{"name", pod->spec.name}, {"cancelled", true}};
}

/// Passes an answer on as it comes. Ends when either side does.
void relay(Stream& client, http::Answer answer) {
  if (answer.status() == 101) {
    if (!http::accept_upgrade(client)) return;
    Stream connection = answer.take_connection();
    return splice_both(client, connection);
  }
  if (answer.status() != 200) {
    const auto body = answer.body(MiB, in(request_time));
    return body ? (void)http::respond(client, answer.status(), *body) : node::answer(client, body.error());
  }
  if (!http::begin_chunks(client, "application/json")) return;
  char buffer[65536];
  for (;;) {
    const auto got = answer.read(buffer, sizeof buffer, never());
    if (!got) return;  // The client sees that the last chunk is missing.
    if (!http::send_chunk(client, std::string_view(buffer, *got)) || *got == 0) return;
  }
}

/// A request about the pod `name`, handled where it is: here by `local`, or passed on. Looks again when the pod has
/// moved in between.
void dispatch(const Api& api, Stream& client, const http::Request& request, const std::string& name,
              const std::function<Result<void>(const std::shared_ptr<LocalPod>&)>& local) {
  Error last{ErrorKind::busy, fmt::format("pod {} moves too fast", name), 0, "try again"};
  for (int attempt = 0; attempt < attempts; attempt++) {
    if (attempt > 0) std::this_thread::sleep_for(between_attempts);
    const auto place = locate(api, name);
    if (place && place->pod) {
      const auto done = local(place->pod);
      if (done) return;
      if (done.error().kind != ErrorKind::gone || place->pod->view().here) return answer(client, done.error());
      continue;
    }
    if (is_forwarded(request)) return answer(client, Json::object(), misdirected);
    if (!place) return answer(client, place.error());
    if (place->record.owner == api.links.config().node) {
      // Ours by the record and not here: only forgetting it makes sense.
      if (request.method == "DELETE" && request.path.size() == 3) {
        const auto removed = api.pods.remove_lost(place->record);
        return removed ? answer(client, Json{{"name", name}, {"removed", true}}) : answer(client, removed.error());
      }
      return answer(client, lost(name));
    }
    auto passed =
        ask_peer(api, place->record.owner, request.method, request.target, request.body,
                 request.path.back() == "migrate" || request.path.back() == "stop" ? never() : in(request_time * 3),
                 wants_upgrade(request));
    if (!passed) return answer(client, passed.error());
    if (passed->status() == misdirected) continue;
    return relay(client, std::move(*passed));
  }
  answer(client, last);
}

void call(const Api& api, Stream& client, const http::Request& request, const std::string& name, const Call& local) {
  dispatch(api, client, request, name, [&](const std::shared_ptr<LocalPod>& pod) -> Result<void> {
    const Json json = TRY(local(api, request, pod));
    answer(client, json);
    return {};
  });
}

void create(const Api& api, Stream& client, const http::Request& request) {
  const auto body = body_of(request);
  if (!body) return answer(client, body.error());
  const auto wanted = new_pod_from(*body, api.caller);
  if (!wanted) return answer(client, wanted.error());
  if (const auto may = api.rules.may_run(api.caller, wanted->user, wanted->capabilities); !may)
    return answer(client, may.error());
  if (const auto no = api.starter.objections(wanted->labels); !no.empty())
    return answer(client, Error{ErrorKind::refused, fmt::format("{}", fmt::join(no, "; ")), 0,
                                "run it on another node: godwit run --node NODE"});
  const auto pod = api.pods.create(*wanted);
  if (!pod) return answer(client, pod.error());
  answer(client, to_json(**pod, api.links.config().node), 201);
}

void change_node(const Api& api, Stream& client, const http::Request& request) {
  const auto body = body_of(request);
  if (!body) return answer(client, body.error());
  const auto draining = flag_field(*body, "draining", api.starter.draining());
  if (!draining) return answer(client, draining.error());
  const auto set = api.starter.set_draining(*draining);
  return set ? answer(client, node_json(api)) : answer(client, set.error());
}

void resolve(const Api& api, Stream& client, const http::Request& request) {
  const auto body = body_of(request);
  if (!body) return answer(client, body.error());
  const auto pod = text_field(*body, "pod");
  const auto place = text_field(*body, "place");
  if (!pod || !place) return answer(client, pod ? place.error() : pod.error());
  if (*place != "here" && *place != "there" && *place != "drop")
    return answer(client, Error{ErrorKind::invalid, "'place' must be here, there or drop", 0, {}});
  const auto done = *place == "drop" ? api.remainders.drop(*pod) : api.doubts.resolve(*pod, *place == "here");
  return done ? answer(client, Json{{"pod", *pod}, {"place", *place}}) : answer(client, done.error());
}

/// A number in the query, or `otherwise` where there is none.
Result<std::uint64_t> query_number(const http::Request& request, const std::string& name, std::uint64_t otherwise) {
  const auto found = request.query.find(name);
  if (found == request.query.end()) return otherwise;
  const std::string& text = found->second;
  std::uint64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || stop != text.data() + text.size())
    return fail(ErrorKind::invalid, "'{}' must be a number, not '{}'", name, text);
  return number;
}

void serve_changes(const Api& api, Stream& client, const http::Request& request) {
  const auto since = query_number(request, "since", 0);
  if (!since) return answer(client, since.error());
  const auto state = api.store.changed(*since, change_time);
  return state ? answer(client, Json{{"state", *state}}) : answer(client, state.error());
}

void serve_history(const Api& api, Stream& client, const http::Request& request) {
  if (request.path.size() == 3) {
    const auto report = find_report(api.store, api.caller, request.path[2]);
    return report ? answer(client, *report) : answer(client, report.error());
  }
  const auto limit = query_number(request, "limit", Journal::most);
  if (!limit) return answer(client, limit.error());
  const auto pod = request.query.find("pod");
  const auto moves = list_moves(api.store, api.caller, pod == request.query.end() ? "" : pod->second, *limit);
  return moves ? answer(client, Json{{"moves", *moves}}) : answer(client, moves.error());
}

/// One that has just come back may not be in the registry yet: it is asked itself.
Result<void> forget(const Api& api, const std::string& node) {
  if (api.links.config().peer(node) != nullptr && ask_peer(api, node, "GET", "/v1/node", "", in(peer_time)))
    return std::unexpected(
        Error{ErrorKind::refused, fmt::format("node {} is there", node), 0, "stop its godwitd first"});
  return forget_node(api.store, node);
}

void route_pod(const Api& api, Stream& client, const http::Request& request) {
  const std::string& name = request.path[2];
  const std::string verb = request.path.size() > 3 ? request.path[3] : "";
  const bool post = request.method == "POST";
  if (!valid_name(name))
    return answer(client, Error{ErrorKind::invalid, fmt::format("'{}' can't be a pod's name", name), 0, {}});
  if (request.path.size() == 3 && request.method == "GET") return call(api, client, request, name, inspect);
  if (request.path.size() == 3 && request.method == "DELETE") return call(api, client, request, name, remove);
  if (request.path.size() == 4 && post && verb == "kill") return call(api, client, request, name, kill);
  if (request.path.size() == 4 && post && verb == "stop") return call(api, client, request, name, stop);
  if (request.path.size() == 5 && post && verb == "migrate" && request.path[4] == "cancel")
    return call(api, client, request, name, cancel);
  if (request.path.size() == 4 && post && verb == "wait") return serve_wait(api, client, request, name);
  if (request.path.size() == 4 && request.method == "GET" && verb == "logs")
    return serve_logs(api, client, request, name);
  if (request.path.size() == 4 && post && verb == "attach") return serve_attach(api, client, request, name);
  if (request.path.size() == 4 && post && verb == "exec")
    return dispatch(api, client, request, name, [&](const std::shared_ptr<LocalPod>& pod) -> Result<void> {
      return serve_exec(client, request, *pod);
    });
  if (request.path.size() == 5 && request.method == "DELETE" && verb == "exec")
    return call(api, client, request, name, hang_up);
  if (request.path.size() == 4 && post && verb == "migrate")
    return dispatch(api, client, request, name, [&](const std::shared_ptr<LocalPod>& pod) -> Result<void> {
      return serve_migrate(api, client, request, pod);
    });
  answer(client,
         Error{ErrorKind::not_found, fmt::format("no {} {} in this API", request.method, request.target), 0, {}});
}

/// What changes the node itself, or the list of nodes.
bool is_for_root(const http::Request& request) {
  const auto& path = request.path;
  return request.method != "GET" && path.size() > 1 && (path[1] == "node" || path[1] == "nodes" || path[1] == "trust");
}

void route(const Api& api, Stream& client, const http::Request& request) {
  const auto& path = request.path;
  const bool get = request.method == "GET";
  if (is_for_root(request) && !api.caller.is_root())
    return answer(client, Error{ErrorKind::refused, "only root may do that", 0, "sudo godwit …"});
  if (path.size() >= 3 && path[0] == "v1" && path[1] == "pods") return route_pod(api, client, request);
  if (path == std::vector<std::string>{"v1", "node"} && get) return answer(client, node_json(api));
  if (path == std::vector<std::string>{"v1", "node"} && request.method == "POST")
    return change_node(api, client, request);
  if (path == std::vector<std::string>{"v1", "node", "resolve"} && request.method == "POST")
    return resolve(api, client, request);
  if (path == std::vector<std::string>{"v1", "nodes"} && get) return serve_nodes(api, client, request.flag("fresh"));
  if (path.size() == 3 && path[0] == "v1" && path[1] == "nodes" && request.method == "DELETE") {
    const auto forgotten = forget(api, path[2]);
    return forgotten ? answer(client, Json{{"name", path[2]}, {"forgotten", true}}) : answer(client, forgotten.error());
  }
  if (path == std::vector<std::string>{"v1", "changes"} && get) return serve_changes(api, client, request);
  if ((path.size() == 2 || path.size() == 3) && path[0] == "v1" && path[1] == "history" && get)
    return serve_history(api, client, request);
  if (path == std::vector<std::string>{"v1", "trust"} && request.method == "POST")
    return change_trust(api, client, request);
  if (path == std::vector<std::string>{"v1", "pods"} && get)
    return serve_pods(api, client, request.flag("local") || is_forwarded(request));
  if (path == std::vector<std::string>{"v1", "pods"} && request.method == "POST") return create(api, client, request);
  answer(client,
         Error{ErrorKind::not_found, fmt::format("no {} {} in this API", request.method, request.target), 0, {}});
}

}  // namespace

void answer(Stream& client, const Json& json, int status) {
  (void)http::respond(client, status, dump(json) + "\n");
}
void answer(Stream& client, const Error& error) {
  answer(client, to_json(error), http_status(error.kind));
}

Error lost(const std::string& name) {
  return Error{ErrorKind::not_found, fmt::format("pod {} was lost when this machine stopped", name), 0,
               "forget it with: godwit rm " + name};
}

namespace {

std::unexpected<Error> nobodys(const Api& api, const std::string& name) {
  const std::string whose = api.caller.is_root() ? "" : " of " + pod::name_of(api.caller.uid);
  return std::unexpected(
      Error{ErrorKind::not_found, fmt::format("no pod{} named '{}'", whose, name), 0, "godwit ps lists them"});
}

}  // namespace

Result<Place> locate(const Api& api, const std::string& name) {
  const Deadline deadline = in(arrival_time);
  for (;;) {
    // Asked before the table: what is expected now is in the table when it no longer is.
    const bool expected = api.pods.expected(name);
    const auto place_of = [&](std::shared_ptr<LocalPod> pod) -> Result<Place> {
      if (!api.sees(pod->spec.user.uid)) return nobodys(api, name);
      return Place{std::move(pod), {}};
    };
    if (auto pod = api.pods.find(name)) return place_of(std::move(pod));
    auto record = TRY(api.store.get(name));
    // It may have arrived while the store was asked.
    if (auto pod = api.pods.find(name)) return place_of(std::move(pod));
    if (!record || !api.sees(record->user)) return nobodys(api, name);
    const bool ours = record->owner == api.links.config().node;
    if (!ours || !expected || std::chrono::steady_clock::now() > deadline) return Place{nullptr, std::move(*record)};
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Result<http::Answer> ask_peer(const Api& api, const std::string& peer, const std::string& method,
                              const std::string& target, const std::string& body, Deadline deadline, bool upgrade,
                              bool forwarded) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  Stream connection = TRY(api.links.connect(peer, service::api, std::min(peer_time, left)));
  std::map<std::string, std::string> headers{{user_header, encode_user(api.caller)}};
  if (forwarded) headers[forwarded_header] = api.links.config().node;
  if (upgrade) {
    headers["Upgrade"] = std::string(http::upgrade_protocol);
    headers["Connection"] = "Upgrade";
  }
  auto answer = http::Answer::to(std::move(connection), method, target, body, headers, deadline);
  if (answer) return answer;
  return std::unexpected(std::move(answer.error()).within("node " + peer));
}

void Api::serve(Stream& client, const pod::User& user) const {
  const auto request = http::read_request(client, in(request_time));
  if (!request) {
    if (request.error().kind == ErrorKind::invalid) answer(client, request.error());
    return;
  }
  Api asked = *this;
  asked.caller = user;
  asked.serve(client, *request);
}

void Api::serve_peer(Stream& client, const Sender& peer) const {
  const auto request = http::read_request(client, in(request_time));
  if (!request) {
    if (request.error().kind == ErrorKind::invalid) answer(client, request.error());
    return;
  }
  const auto user = decode_user(request->header(user_header));
  if (!user) return answer(client, user.error());
  if (const auto may = rules.may_speak(peer, *user); !may) return answer(client, may.error());
  // Whom a command wants to do it, the daemon that it asks finds itself: nobody is asked through a third node, which
  // may be trusted where the one that asks isn't.
  if (const auto& other = request->header(node_header); !other.empty() && other != links.config().node)
    return answer(client, Json::object(), misdirected);
  Api asked = *this;
  asked.caller = *user;
  asked.serve(client, *request);
}

void Api::serve(Stream& client, const http::Request& request) const {
  log::debug("{} {} of {}", request.method, request.target, caller.uid);
  const std::string other = request.header(node_header);
  if (other.empty() || other == links.config().node || is_forwarded(request)) return route(*this, client, request);
  // Somebody wants that node's daemon to do it, in full: not marked as passed on.
  auto passed =
      ask_peer(*this, other, request.method, request.target, request.body, never(), wants_upgrade(request), false);
  if (!passed) return answer(client, passed.error());
  relay(client, std::move(*passed));
}

}  // namespace godwit::node
