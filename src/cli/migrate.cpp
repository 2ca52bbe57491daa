#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "cli/commands.hpp"
#include "cli/report.hpp"

namespace godwit::cli {
namespace {

/// One line that is written over on a terminal; a line for every phase and round otherwise.
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet) : quiet_(quiet), live_(::isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() { clear(); }

  void show(const Json& progress) {
    if (quiet_) return;
    const std::string phase = text_of(progress, "phase");
    const std::uint64_t round = number_of(progress, "round");
    const std::string step = round > 0 ? fmt::format("{} round {}", phase, round) : phase;
    std::string line = fmt::format("{:<18}", step);
    if (number_of(progress, "bytes_sent") > 0)
      line += fmt::format("  {} pages, {} sent, {}/s, {} left", number_of(progress, "pages_sent"),
                          human_bytes(number_of(progress, "bytes_sent")),
                          human_bytes(number_of(progress, "bytes_per_second")),
                          human_bytes(number_of(progress, "bytes_left")));
    if (live_) {
      fmt::print(stderr, "\r\033[K{}", line);
      dirty_ = true;
    } else if (step != last_) {
      fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
    last_ = step;
  }
  void clear() {
    if (dirty_) fmt::print(stderr, "\r\033[K");
    dirty_ = false;
  }

 private:
  const bool quiet_, live_;
  bool dirty_ = false;
  std::string last_;
};

/// Ctrl-C asks the daemon to cancel; what comes of it stands in the report.
class CancelOnInterrupt {
 public:
  CancelOnInterrupt(const Client& client, const std::string& pod) {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this, client, pod] {
      for (;;) {
        int signal = 0;
        if (::sigwait(&signals_, &signal) != 0 || signal == SIGUSR1) return;
        fmt::print(stderr, "\ngodwit: asking for the migration to be cancelled\n");
        (void)client.request("POST", pod_target(pod, "/migrate/cancel"));
      }
    });
  }
  ~CancelOnInterrupt() {
    ::pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
    ::pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
  }

 private:
  sigset_t signals_{};
  std::thread thread_;
};

void print_dry_run(const Json& report) {
  const Json refusals = report.value("refusals", Json::array());
  const std::string what = fmt::format("{} from {} to {}", text_of(report, "pod"), text_of(report, "source"),
                                       text_of(report, "destination"));
  if (refusals.empty()) {
    fmt::print(
        "{} by {}: would be moved\n  expected freeze  about {}\n  expected bytes   about {}\nestimated from {}\n", what,
        text_of(report, "strategy"), human_time(number_of(report, "expected_freeze_us")),
        human_bytes(number_of(report, "expected_bytes")), text_of(report, "expected_from"));
    return;
  }
  fmt::print("{}: would be refused\n", what);
  for (const Json& refusal : refusals)
    fmt::print("  {}\n", refusal.is_string() ? refusal.get<std::string>() : refusal.dump());
}

/// The lines of the answer until the last, which is returned.
Result<Json> follow(node::http::Answer& answer, ProgressLine& progress) {
  std::string pending;
  Json last;
  char buffer[16384];
  for (;;) {
    const std::size_t got = TRY(answer.read(buffer, sizeof buffer, node::never()));
    if (got == 0) break;
    pending.append(buffer, got);
    for (std::size_t end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
      const Json line = TRY(node::parse_json(pending.substr(0, end)));
      pending.erase(0, end + 1);
      if (line.contains("progress")) progress.show(line["progress"]);
      if (line.contains("report")) last = line;
    }
  }
  if (last.is_null()) return fail(ErrorKind::failed, "the daemon gave no report");
  return last;
}

int cancel(const Common& common, const std::string& pod) {
  const auto done = Client(common).request("POST", pod_target(pod, "/migrate/cancel"));
  if (!done) return complain(common, done.error());
  if (common.json)
    print_json(*done);
  else
    fmt::print("{}: cancelled, if it was not committed yet; it says so itself\n", pod);
  return exit_code::ok;
}

}  // namespace

int drain(const Common& common, const DrainOptions& options) {
  const Client client(common);
  const auto node = client.request("POST", "/v1/node", Json{{"draining", !options.undo}});
  if (!node) return complain(common, node.error());
  Json moves = Json::array();
  int code = exit_code::ok;
  if (!options.undo && !options.only_close) {
    const auto answer = client.request("GET", "/v1/pods?local");
    if (!answer) return complain(common, answer.error());
    for (const Json& pod : answer->value("pods", Json::array())) {
      const std::string name = text_of(pod, "name");
      if (text_of(pod, "state") == "exited") continue;
      const Json body{{"destination", options.to}, {"strategy", options.strategy}};
      auto moving = client.stream("POST", pod_target(name, "/migrate"), body);
      ProgressLine progress(common.json);
      const auto last = moving ? follow(*moving, progress) : Result<Json>(std::unexpected(moving.error()));
      progress.clear();
      const auto error = last ? node::error_in(*last) : std::optional(last.error());
      // One that has ended meanwhile needs no other place.
      if (error && (error->kind == ErrorKind::not_found || error->kind == ErrorKind::gone)) continue;
      moves.push_back({{"pod", name}, {"moved", !error}});
      if (error) {
        code = exit_code_of(*error);
        moves.back()["error"] = error->message();
        if (!common.json) fmt::print(stderr, "godwit: {} stays: {}\n", name, error->message());
        continue;
      }
      const Json& report = (*last)["report"];
      moves.back()["report"] = report;
      if (!common.json)
        fmt::print("{} is on {} now: frozen {}\n", name, text_of(report, "destination"),
                   human_time(number_of(report, "freeze_us")));
    }
  }
  const std::string name = text_of(*node, "name");
  if (common.json)
    print_json({{"node", name}, {"draining", !options.undo}, {"moves", moves}});
  else if (options.undo)
    fmt::print("{} takes pods again\n", name);
  else
    fmt::print("{} takes no pods{}\n", name,
               code == exit_code::ok && !options.only_close ? " and has none: godwit drain --undo ends this" : "");
  return code;
}

int migrate(const Common& common, const MigrateOptions& options) {
  if (options.cancel) return cancel(common, options.pod);
  if (options.destination.empty())
    return complain(common,
                    Error{ErrorKind::invalid, "migrate needs the name of a node", 0, "godwit nodes lists them"});
  const Client client(common);
  const Json body{{"destination", options.destination},
                  {"strategy", options.strategy},
                  {"dry_run", options.dry_run},
                  {"connections", options.connections},
                  {"deadline_ms", static_cast<std::int64_t>(options.deadline * 1000)}};
  std::optional<CancelOnInterrupt> interrupt;
  interrupt.emplace(client, options.pod);
  auto answer = client.stream("POST", pod_target(options.pod, "/migrate"), body);
  if (!answer) return complain(common, answer.error());
  ProgressLine progress(common.json || options.dry_run);
  const auto last = follow(*answer, progress);
  progress.clear();
  interrupt.reset();
  if (!last)
    return complain(common, std::move(Error(last.error())).within("the migration may go on; godwit ps shows it"));
  const Json& report = (*last)["report"];
  const auto error = node::error_in(*last);
  if (common.json) {
    print_json(report);
  } else if (options.dry_run) {
    if (!error) print_dry_run(report);
  } else if (!error) {
    print_report(report);
  }
  const Json refusals = report.value("refusals", Json::array());
  if (!error) return refusals.empty() ? exit_code::ok : exit_code::refused;
  fmt::print(stderr, "godwit: {}\n", error->message());
  if (!common.json)
    for (const Json& refusal : refusals)
      fmt::print(stderr, "  {}\n", refusal.is_string() ? refusal.get<std::string>() : refusal.dump());
  return exit_code_of(*error);
}

}  // namespace godwit::cli
