#include "node/journal.hpp"

#include <algorithm>

#include "base/caught.hpp"
#include "base/log.hpp"

namespace godwit::node {
namespace {

constexpr const char* summary_kind = "move";
constexpr const char* report_kind = "report";
constexpr std::chrono::seconds retry_interval{2};

const char* to_string(Journal::Outcome outcome) {
  switch (outcome) {
    case Journal::Outcome::moved:
      return "moved";
    case Journal::Outcome::refused:
      return "refused";
    case Journal::Outcome::cancelled:
      return "cancelled";
    case Journal::Outcome::failed:
      return "failed";
    case Journal::Outcome::interrupted:
      return "interrupted";
  }
  return "?";
}

/// Where the pod was then; empty when neither node had it.
std::string place_of(const migrate::Report& report) {
  if (report.fate == control::Fate::here) return report.source;
  return report.fate == control::Fate::there ? report.destination : "";
}

/// Sorted by it, moves are in the order in which they began, as far as the nodes' clocks agree.
std::string key_of(const std::string& id, std::int64_t began_ms) {
  return fmt::format("{:012x}-{}", std::max<std::int64_t>(0, began_ms), id);
}

bool may_read(const pod::User& reader, const Json& move) {
  return reader.is_root() || number_field(move, "uid").value_or(0) == reader.uid;
}

}  // namespace

Journal::Journal(store::Store& store)
    : store_(store), thread_([this] { keep_going("the history", [this] { work(); }); }) {}

Journal::~Journal() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (!waiting_.empty()) log::warn("the history lacks {} moves: the store is away", waiting_.size());
}

Journal::Outcome Journal::outcome_of(const std::optional<Error>& error) {
  if (!error) return Outcome::moved;
  if (error->kind == ErrorKind::refused) return Outcome::refused;
  return error->kind == ErrorKind::cancelled ? Outcome::cancelled : Outcome::failed;
}

void Journal::add(const Entry& entry) {
  const std::int64_t began =
      std::chrono::duration_cast<std::chrono::milliseconds>(entry.began.time_since_epoch()).count();
  const migrate::Report& report = entry.report;
  const Json summary{{"id", entry.id},
                     {"began_ms", began},
                     {"pod", report.pod},
                     {"uid", entry.user},
                     {"source", report.source},
                     {"destination", report.destination},
                     {"strategy", report.strategy},
                     {"outcome", to_string(entry.outcome)},
                     {"node", place_of(report)},
                     {"freeze_us", report.freeze_us},
                     {"total_us", report.total_us},
                     {"bytes_sent", report.bytes_sent},
                     {"error", report.error.substr(0, error_limit)}};
  Json whole = to_json(report);
  for (const char* name : {"id", "began_ms", "uid", "outcome", "node"}) whole[name] = summary[name];
  const std::string key = key_of(entry.id, began);
  Waiting waiting{.report = {.kind = report_kind, .key = key, .value = dump(whole)},
                  .summary = {.kind = summary_kind, .key = key, .value = dump(summary)},
                  .belated = entry.outcome == Outcome::interrupted};
  if (const std::size_t size = waiting.report.value.size(); size > store::value_limit) {
    Json cut = summary;
    cut["cut"] = fmt::format("the report had {} bytes, {} are kept: this is its summary", size, store::value_limit);
    waiting.report.value = dump(cut);
  }
  const std::lock_guard lock(mutex_);
  if (waiting_.size() == most_waiting) {
    log::warn("the history lacks move {}: the store is away", waiting_.front().summary.key);
    waiting_.pop_front();
  }
  waiting_.push_back(std::move(waiting));
  wake_.notify_all();
}

/// The list last: what stands in it has a report. Written twice it is the same.
Result<void> Journal::write(const Waiting& waiting) {
  if (waiting.belated && !TRY(store_.notes(summary_kind, waiting.summary.key)).empty()) return {};
  TRY(store_.put(waiting.report, {.most = most}));
  return store_.put(waiting.summary, {.most = most});
}

void Journal::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const Waiting next = waiting_.front();
    lock.unlock();
    const auto done = write(next);
    lock.lock();
    const bool never = !done && done.error().kind == ErrorKind::invalid;
    if (never) log::warn("the history lacks move {}: {}", next.summary.key, done.error().message());
    if (done || never) {
      // Meanwhile it may have had to make room.
      if (!waiting_.empty() && waiting_.front().summary.key == next.summary.key) waiting_.pop_front();
      continue;
    }
    if (ending_) return;
    wake_.wait_for(lock, retry_interval, [this] { return ending_; });
  }
}

Result<Json> list_moves(store::Store& store, const pod::User& reader, const std::string& pod, std::size_t limit) {
  const auto notes = TRY(store.notes(summary_kind));
  Json moves = Json::array();
  for (auto note = notes.rbegin(); note != notes.rend() && moves.size() < limit; ++note) {
    auto json = parse_json(note->value);
    if (!json || !json->is_object() || !may_read(reader, *json)) continue;
    if (pod.empty() || text_field(*json, "pod").value_or("") == pod) moves.push_back(std::move(*json));
  }
  return moves;
}

Result<Json> find_report(store::Store& store, const pod::User& reader, const std::string& id) {
  const auto absent = [&] {
    return std::unexpected(
        Error{ErrorKind::not_found, fmt::format("the history has no move '{}'", id), 0, "godwit history lists them"});
  };
  std::vector<std::string> keys;
  for (const auto& note : TRY(store.notes(summary_kind)))
    if (const auto dash = note.key.find('-'); dash != std::string::npos && note.key.substr(dash + 1).starts_with(id))
      keys.push_back(note.key);
  if (keys.empty() || id.empty()) return absent();
  if (keys.size() > 1) return fail(ErrorKind::invalid, "'{}' begins the ids of {} moves", id, keys.size());
  const auto reports = TRY(store.notes(report_kind, keys.front()));
  if (reports.empty()) return absent();
  auto report = TRY(parse_json(reports.front().value));
  if (!report.is_object() || !may_read(reader, report)) return absent();
  return report;
}

}  // namespace godwit::node
