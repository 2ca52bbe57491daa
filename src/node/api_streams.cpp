#include <poll.h>
#include <sys/socket.h>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "node/api_parts.hpp"
#include "node/follow.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds lost_patience{30};
constexpr std::chrono::milliseconds between_attempts{50};
constexpr std::chrono::milliseconds progress_interval{100};
constexpr std::chrono::seconds peer_time{10};

bool is_gone(const Stream& client) {
  pollfd gone{client.fd(), 0, 0};
  return ::poll(&gone, 1, 0) > 0;
}

/// Follows the pod for the client, wherever it is and goes.
void follow_pod(const Api& api, Stream& client, const std::string& name, const StreamOptions& options,
                std::unique_ptr<PodStream> stream, const std::function<bool(const pod::Frame&)>& sink) {
  const auto open = [&](const StreamOptions& from) -> Result<std::unique_ptr<FrameSource>> {
    return TRY(PodStream::open(api, name, from));
  };
  follow(client, options, std::move(stream), open, sink);
}

/// Serves the frames of a pod that is here to another daemon, which follows it. False when it isn't here.
bool serve_forwarded(const Api& api, Stream& client, const StreamOptions& options, const std::string& name) {
  const auto pod = api.pods.find(name);
  if (!pod || !api.sees(pod->spec.user.uid)) {
    answer(client, Json::object(), misdirected);
    return false;
  }
  if (http::accept_upgrade(client)) serve_stream(client, *pod, options);
  return true;
}

/// Where it can't be done, the node where the pod is does it when nobody has come back for a while.
void end_execution(const Api& api, const std::string& pod, const std::string& id) {
  const auto place = locate(api, pod);
  if (!place) return;
  if (place->pod)
    (void)close_execution(*place->pod, id);
  else
    (void)ask_peer(api, place->record.owner, "DELETE", fmt::format("/v1/pods/{}/exec/{}", http::encode(pod), id), "",
                   in(peer_time));
}

Result<StreamOptions> options_from(const http::Request& request, bool follow_default) {
  StreamOptions options;
  const auto position = request.query.find("position");
  if (position != request.query.end()) options.position = TRY(decode_position(position->second));
  options.follow = follow_default || request.flag("follow");
  options.input = request.flag("input");
  options.tail = request.flag("tail");
  options.places = request.flag("places");
  if (const auto execution = request.query.find("execution"); execution != request.query.end()) {
    if (!pod::is_execution(execution->second))
      return fail(ErrorKind::invalid, "'{}' can't be the name of an execution", execution->second);
    options.execution = execution->second;
  }
  return options;
}

}  // namespace

Result<std::unique_ptr<PodStream>> PodStream::open(const Api& api, const std::string& name,
                                                   const StreamOptions& options) {
  auto stream = std::make_unique<PodStream>();
  auto place = TRY(locate(api, name));
  if (place.pod) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("socketpair");
    stream->stream_ = Stream(Fd(pair[0]));
    stream->server_ = std::thread([pod = std::move(place.pod), options, served = Stream(Fd(pair[1]))]() mutable {
      const auto done = caught([&]() -> Result<void> {
        serve_stream(served, *pod, options);
        return {};
      });
      if (!done) log::error("the streams of pod {}: {}", pod->spec.name, done.error().message());
    });
    return stream;
  }
  if (place.record.owner == api.links.config().node) return std::unexpected(lost(name));
  const std::string target =
      fmt::format("/v1/pods/{}/attach?position={}{}{}{}", http::encode(name),
                  http::encode(encode_position(options.position)), options.input ? "&input" : "",
                  options.follow ? "" : "&once", options.execution.empty() ? "" : "&execution=" + options.execution);
  auto answer = TRY(ask_peer(api, place.record.owner, "POST", target, "", in(peer_time), true));
  if (answer.status() == misdirected) return fail(ErrorKind::unreachable, "pod {} is between two nodes", name);
  if (answer.status() != 101) {
    const auto json = TRY(parse_json(TRY(answer.body(MiB, in(peer_time)))));
    if (auto error = error_in(json)) return std::unexpected(std::move(*error));
    return fail(ErrorKind::failed, "node {} answered with {}", place.record.owner, answer.status());
  }
  stream->stream_ = answer.take_connection();
  return stream;
}

PodStream::~PodStream() {
  if (stream_) ::shutdown(stream_.fd(), SHUT_RDWR);
  if (server_.joinable()) server_.join();
}

void serve_attach(const Api& api, Stream& client, const http::Request& request, const std::string& name) {
  auto options = options_from(request, !request.flag("once"));
  if (!options) return answer(client, options.error());
  if (!wants_upgrade(request))
    return answer(client, Error{ErrorKind::invalid, "attach needs an upgrade of the connection", 0,
                                fmt::format("send 'Upgrade: {}'", http::upgrade_protocol)});
  if (is_forwarded(request)) return (void)serve_forwarded(api, client, *options, name);
  auto stream = PodStream::open(api, name, *options);
  if (!stream) return answer(client, stream.error());
  if (!http::accept_upgrade(client)) return;
  follow_pod(api, client, name, *options, std::move(*stream),
             [&](const pod::Frame& frame) { return write_frame(client, frame.kind, frame.bytes).has_value(); });
  // It has ended, or its client is gone. When it is this daemon that ends, the client comes back to the next one.
  if (!options->execution.empty() && !api.pods.leaving_off()) end_execution(api, name, options->execution);
}

void serve_logs(const Api& api, Stream& client, const http::Request& request, const std::string& name) {
  auto options = options_from(request, false);
  if (!options) return answer(client, options.error());
  options->input = options->places = false;
  options->execution.clear();
  auto stream = PodStream::open(api, name, *options);
  if (!stream) return answer(client, stream.error());
  const bool frames = request.flag("frames");
  if (!http::begin_chunks(client, frames ? "application/octet-stream" : "text/plain; charset=utf-8")) return;
  follow_pod(api, client, name, *options, std::move(*stream), [&](const pod::Frame& frame) {
    Bytes out;
    if (frames) {
      pod::append_frame(out, frame.kind, frame.bytes);
    } else if (frame.kind == pod::FrameKind::output || frame.kind == pod::FrameKind::error ||
               frame.kind == pod::FrameKind::terminal) {
      out = frame.bytes;
    }
    if (out.empty()) return true;
    return http::send_chunk(client, std::string_view(reinterpret_cast<const char*>(out.data()), out.size()))
        .has_value();
  });
  (void)http::send_chunk(client, "");
}

void serve_wait(const Api& api, Stream& client, const http::Request& request, const std::string& name) {
  const auto ended = [](const LocalPod::View& view) { return !view.here || view.state == PodState::exited; };
  Deadline patience = in(lost_patience);
  while (!is_gone(client)) {
    const auto place = locate(api, name);
    if (place && place->pod) {
      const auto view = place->pod->wait(ended, in(std::chrono::seconds(1)));
      patience = in(lost_patience);
      // Whoever passes the question on looks after its client in between, and asks again.
      if (!view && is_forwarded(request)) return answer(client, Json{{"name", name}});
      if (!view || !view->here) continue;
      const int status = view->status.value_or(0);
      return answer(client, Json{{"name", name}, {"exit_code", exit_code(status)}, {"status", status}});
    }
    if (is_forwarded(request)) return answer(client, Json::object(), misdirected);
    if (!place && place.error().kind == ErrorKind::not_found) return answer(client, place.error());
    const bool ours = place && place->record.owner == api.links.config().node;
    if (ours && !api.pods.expected(name)) return answer(client, lost(name));
    Error why = place ? Error{} : place.error();
    if (place && !ours) {
      auto passed = ask_peer(api, place->record.owner, "POST", request.target, "", in(peer_time));
      if (passed && passed->status() != misdirected) {
        const auto body = passed->body(MiB, in(peer_time));
        const auto said = body ? parse_json(*body) : std::unexpected(body.error());
        if (said && (passed->status() != 200 || said->contains("exit_code")))
          return (void)http::respond(client, passed->status(), *body);
        if (said) {
          patience = in(lost_patience);
          continue;
        }
        why = said.error();
      } else if (passed) {
        patience = in(lost_patience);
      } else {
        why = passed.error();
      }
    }
    if (std::chrono::steady_clock::now() > patience) return answer(client, why);
    std::this_thread::sleep_for(between_attempts);
  }
}

Result<void> serve_exec(Stream& client, const http::Request& request, LocalPod& pod) {
  const auto body = parse_json(request.body);
  if (!body) return std::unexpected(body.error());
  auto program = TRY(program_from(*body));
  // What the pod's first program was started with, unless said otherwise.
  for (const std::string& entry : pod.spec.program.environment) {
    const std::string prefix = entry.substr(0, entry.find('=') + 1);
    const auto same = [&](const std::string& other) { return other.starts_with(prefix); };
    if (std::ranges::none_of(program.environment, same)) program.environment.push_back(entry);
  }
  const std::string id = TRY(start_execution(pod, program));
  answer(client, Json{{"execution", id}});
  return {};
}

Result<void> serve_migrate(const Api& api, Stream& client, const http::Request& request,
                           const std::shared_ptr<LocalPod>& pod) {
  const auto body = parse_json(request.body);
  if (!body || !body->is_object()) return std::unexpected(Error{ErrorKind::invalid, "the body must be a JSON object"});
  migrate::Options options;
  const auto destination = text_field(*body, "destination");
  const auto strategy = text_field(*body, "strategy", options.strategy);
  const auto dry_run = flag_field(*body, "dry_run");
  const auto connections = number_field(*body, "connections");
  const auto deadline_ms = number_field(*body, "deadline_ms");
  if (!destination) return std::unexpected(destination.error());
  if (!strategy) return std::unexpected(strategy.error());
  if (!dry_run) return std::unexpected(dry_run.error());
  if (!connections || *connections < 0 || *connections > 16)
    return std::unexpected(Error{ErrorKind::invalid, "'connections' must be a number from 0 to 16"});
  constexpr std::int64_t day_ms = 24 * 3600 * 1000;
  if (!deadline_ms || *deadline_ms < 0 || *deadline_ms > day_ms)
    return std::unexpected(Error{ErrorKind::invalid, "'deadline_ms' must be up to a day"});
  std::optional<Deadline> deadline;
  if (*deadline_ms > 0) deadline = in(std::chrono::milliseconds(*deadline_ms));
  options.strategy = *strategy;
  options.dry_run = *dry_run;
  options.connections = static_cast<int>(*connections);
  static const std::vector<std::string> strategies{"auto", "freeze", "precopy", "postcopy", "hybrid", "eager-dirty"};
  if (std::ranges::find(strategies, options.strategy) == strategies.end())
    return std::unexpected(Error{ErrorKind::invalid, fmt::format("no strategy named '{}'", options.strategy), 0,
                                 "auto, freeze, precopy, postcopy, hybrid or eager-dirty"});
  TRY(api.rules.may_move(api.caller));
  const auto begun = api.moves.begin(pod, *destination, options, deadline);
  if (!begun) return std::unexpected(begun.error());
  // From here on the migration goes on whether anybody reads this or not.
  const Move& move = **begun;
  if (!http::begin_chunks(client, "application/x-ndjson")) return {};
  std::uint64_t seen = 0;
  for (;;) {
    const Move::View view = move.next(seen, never());
    seen = view.number;
    if (view.over) {
      Json last{{"report", to_json(view.report)}};
      if (view.error) last["error"] = to_json(*view.error)["error"];
      (void)http::send_chunk(client, dump(last) + "\n");
      (void)http::send_chunk(client, "");
      return {};
    }
    if (!http::send_chunk(client, dump(Json{{"progress", to_json(view.progress)}}) + "\n")) return {};
    // The next phase is said at once, the numbers within one now and then.
    const std::string phase = view.progress.phase;
    const Deadline pause = in(progress_interval);
    while (std::chrono::steady_clock::now() < pause) {
      const Move::View newer = move.next(seen, pause);
      if (newer.over || newer.progress.phase != phase || newer.number == seen) break;
      seen = newer.number;
    }
    seen = std::min(seen, view.number);
  }
}

}  // namespace godwit::node
