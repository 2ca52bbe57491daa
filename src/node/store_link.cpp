#include "node/store_link.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "image/codec.hpp"
#include "kernel/priority.hpp"
#include "node/journal.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t request_limit = store::value_limit + 64 * KiB;
constexpr std::size_t answer_limit = 64 * MiB;
constexpr std::size_t idle_limit = 4;
constexpr std::chrono::seconds call_time{5};
constexpr std::chrono::seconds warm_interval{10};
constexpr std::chrono::seconds lease_limit{24 * 3600};
constexpr std::size_t line_limit = 64 * KiB;  ///< of a move in the history: all of them are read at once
/// A note is kept by the time in its key: one from far ahead would never make room. Clocks are wrong by less.
constexpr std::chrono::hours ahead_limit{48};
/// For changes: the answer has to be back within call_time.
constexpr std::chrono::milliseconds change_limit{3000};

struct Request {
  std::string call;  ///< the name of a call of store::Store
  store::Record record;
  std::string owner;        ///< move: the new one
  store::Note note;         ///< put; notes, erase: kind and key
  std::int64_t lease = 0;   ///< put: seconds
  std::uint64_t since = 0;  ///< changed
  std::int64_t limit = 0;   ///< changed: milliseconds
  MSGPACK_DEFINE_MAP(call, record, owner, note, lease, since, limit)
};

struct Answer {
  int error_kind = -1;  ///< ErrorKind, or -1
  std::string what, hint;
  int code = 0;
  bool yes = false;
  std::vector<store::Record> records;
  std::vector<store::Note> notes;
  std::uint64_t state = 0;
  MSGPACK_DEFINE_MAP(error_kind, what, hint, code, yes, records, notes, state)
};

template <typename T>
bool note_error(const Result<T>& result, Answer& answer) {
  if (result) return false;
  answer.error_kind = static_cast<int>(result.error().kind);
  answer.what = result.error().what;
  answer.hint = result.error().hint;
  answer.code = result.error().code;
  return true;
}

/// Who asks, and what it may.
struct Asking {
  const std::string& peer;
  const MayChange& may;
};

/// A field of a note's JSON; empty where there is no such text.
std::string text_in(const store::Note& note, const char* field) {
  const auto json = nlohmann::json::parse(note.value, nullptr, false);
  if (!json.is_object()) return {};
  const auto found = json.find(field);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

bool is_of_a_move(const store::Note& note) {
  return note.kind == "move" || note.kind == "report";
}

/// When the move began that the key is for: "MILLISECONDS-ID", twelve digits of hex. None for what is no such key.
std::optional<std::chrono::milliseconds> time_in(const std::string& key) {
  constexpr std::size_t digits = 12;
  if (key.size() <= digits || key[digits] != '-') return {};
  std::int64_t ms = 0;
  const auto [stop, error] = std::from_chars(key.data(), key.data() + digits, ms, 16);
  if (error != std::errc{} || stop != key.data() + digits || ms < 0) return {};
  return std::chrono::milliseconds(ms);
}

/// The history is what the sources of moves say of them: nobody writes another's, nor over it.
Result<void> permit_move(const store::Note& note, store::Store& store, const std::string& peer) {
  const auto began = time_in(note.key);
  // In the unit of the key, which says what it likes: a finer one would overflow.
  const auto now =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  if (!began || *began > now + ahead_limit)
    return fail(ErrorKind::invalid, "store: {} '{}' is of no move", note.kind, note.key.substr(0, 100));
  const auto is_theirs = [&](const store::Note& of) { return text_in(of, "source") == peer; };
  if (!is_theirs(note) || !std::ranges::all_of(TRY(store.notes(note.kind, note.key)), is_theirs))
    return fail(ErrorKind::refused, "store: {} '{}' is not {}'s to write", note.kind, note.key, peer);
  return {};
}

Result<void> permit_put(const store::Note& note, store::Store& store, const std::string& peer) {
  // What is malformed says so.
  TRY(check(note));
  if (note.kind == "move" && note.value.size() > line_limit)
    return fail(ErrorKind::invalid, "store: move '{}' is longer than {} bytes", note.key.substr(0, 100), line_limit);
  if (is_of_a_move(note)) return permit_move(note, store, peer);
  if (note.kind == "node" && note.key == peer) return {};
  return fail(ErrorKind::refused, "store: {} '{}' is not {}'s to write", note.kind, note.key.substr(0, 100), peer);
}

/// What a node has said of itself is forgotten when it is away: its lease is over, or it has said so when it ended.
Result<void> permit_erase(const store::Note& note, store::Store& store, const std::string& peer) {
  if (note.kind == "node" && note.key == peer) return {};
  const auto gone = [](const store::Note& found) { return found.away || text_in(found, "state") == "away"; };
  if (note.kind == "node" && !note.key.empty() && std::ranges::all_of(TRY(store.notes(note.kind, note.key)), gone))
    return {};
  return fail(ErrorKind::refused, "store: {} '{}' is not {}'s to erase", note.kind.substr(0, 100),
              note.key.substr(0, 100), peer);
}

/// Whether the one who asks may change this record, or note.
Result<void> permit(const Request& request, store::Store& store, const Asking& asking) {
  const auto& [peer, may] = asking;
  if (request.call == "put") return permit_put(request.note, store, peer);
  if (request.call == "erase") return permit_erase(request.note, store, peer);
  if (request.call == "create") return may(request.record);
  if (request.call != "move" && request.call != "remove") return {};
  const auto found = TRY(store.get(request.record.pod));
  return found ? may(*found) : Result<void>{};
}

/// Not as the caller says: a note with a lease is always one, and one without is always one of so many.
store::Keep keep_of(const Request& request) {
  if (is_of_a_move(request.note)) return {.most = Journal::most};
  return {.lease = std::chrono::seconds(std::clamp<std::int64_t>(request.lease, 1, lease_limit.count()))};
}

Answer answer_to(const Request& request, store::Store& store, const Asking& asking) {
  Answer answer;
  if (note_error(permit(request, store, asking), answer)) return answer;
  if (request.call == "create") {
    note_error(store.create(request.record), answer);
  } else if (request.call == "get") {
    auto found = store.get(request.record.pod);
    if (!note_error(found, answer) && *found) answer.records.push_back(std::move(**found));
  } else if (request.call == "list") {
    auto all = store.list();
    if (!note_error(all, answer)) answer.records = std::move(*all);
  } else if (request.call == "move" || request.call == "remove") {
    const auto done = request.call == "move" ? store.move(request.record, request.owner) : store.remove(request.record);
    if (!note_error(done, answer)) answer.yes = *done;
  } else if (request.call == "changed") {
    const std::chrono::milliseconds limit(std::clamp<std::int64_t>(request.limit, 0, change_limit.count()));
    const auto state = store.changed(request.since, limit);
    if (!note_error(state, answer)) answer.state = *state;
  } else if (request.call == "put") {
    note_error(store.put(request.note, keep_of(request)), answer);
  } else if (request.call == "notes") {
    auto found = store.notes(request.note.kind, request.note.key);
    if (!note_error(found, answer)) answer.notes = std::move(*found);
  } else if (request.call == "erase") {
    note_error(store.erase(request.note.kind, request.note.key), answer);
  } else {
    note_error(Result<void>(fail(ErrorKind::invalid, "the store has no call '{}'", request.call)), answer);
  }
  return answer;
}

class StoreLink final : public store::Store {
 public:
  StoreLink(const Links& links, std::string peer) : links_(links), peer_(std::move(peer)) {
    warmer_ = std::thread([this] { keep_going("the connections to the store", [this] { keep_warm(); }); });
  }
  ~StoreLink() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    warmer_.join();
  }

  Result<void> create(const store::Record& record) override {
    bool repeated = false;
    auto answer = ask({.call = "create", .record = record}, repeated);
    if (answer) return {};
    // The first try may have done it before its answer was lost.
    if (repeated && answer.error().kind == ErrorKind::busy) {
      const auto found = TRY(get(record.pod));
      if (found && found->id == record.id) return {};
    }
    return std::unexpected(std::move(answer.error()));
  }

  Result<std::optional<store::Record>> get(const std::string& pod) override {
    bool repeated = false;
    Answer answer = TRY(ask({.call = "get", .record = {.pod = pod}}, repeated));
    if (answer.records.empty()) return std::nullopt;
    return std::move(answer.records.front());
  }

  Result<std::vector<store::Record>> list() override {
    bool repeated = false;
    return TRY(ask({.call = "list"}, repeated)).records;
  }

  /// Repeating is safe: the epoch lets one of the two tries through at most. If it was the first, whose answer was
  /// lost, the record says so.
  Result<bool> move(const store::Record& expected, const std::string& new_owner) override {
    bool repeated = false;
    const Answer answer = TRY(ask({.call = "move", .record = expected, .owner = new_owner}, repeated));
    if (answer.yes || !repeated) return answer.yes;
    const auto found = TRY(get(expected.pod));
    return found && found->id == expected.id && found->owner == new_owner && found->epoch == expected.epoch + 1;
  }

  Result<bool> remove(const store::Record& expected) override {
    bool repeated = false;
    const Answer answer = TRY(ask({.call = "remove", .record = expected}, repeated));
    if (answer.yes || !repeated) return answer.yes;
    return !TRY(get(expected.pod)).has_value();
  }

  Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) override {
    bool repeated = false;
    return TRY(ask({.call = "changed", .since = since, .limit = limit.count()}, repeated)).state;
  }

  // What these do twice is what they do once. How many notes of a kind stay, who serves them says.
  Result<void> put(const store::Note& note, const store::Keep& keep) override {
    bool repeated = false;
    TRY(ask({.call = "put", .note = note, .lease = keep.lease.count()}, repeated));
    return {};
  }

  Result<std::vector<store::Note>> notes(const std::string& kind, const std::string& key) override {
    bool repeated = false;
    return TRY(ask({.call = "notes", .note = {.kind = kind, .key = key}}, repeated)).notes;
  }

  Result<void> erase(const std::string& kind, const std::string& key) override {
    bool repeated = false;
    TRY(ask({.call = "erase", .note = {.kind = kind, .key = key}}, repeated));
    return {};
  }

 private:
  /// An answer of the store, or its error. `repeated` when the request went out twice because the first connection
  /// broke after it was sent.
  Result<Answer> ask(const Request& request, bool& repeated) {
    const Bytes packed = image::pack(request);
    if (packed.size() > request_limit) return fail(ErrorKind::invalid, "store: the record is too long");
    Error last;
    for (int attempt = 0; attempt < 2; attempt++) {
      repeated = attempt > 0;
      Result<Stream> connection = attempt == 0 ? take() : open();
      if (!connection) return std::unexpected(std::move(connection.error()));
      Result<Answer> answer = exchange(*connection, packed);
      if (!answer) {
        last = answer.error();
        drop_idle();
        continue;
      }
      give_back(std::move(*connection));
      if (answer->error_kind < 0) return answer;
      const int kind = std::min(answer->error_kind, static_cast<int>(ErrorKind::cancelled));
      return std::unexpected(Error{static_cast<ErrorKind>(kind), answer->what, answer->code, answer->hint});
    }
    last.kind = ErrorKind::unreachable;
    return std::unexpected(std::move(last).within(fmt::format("store on node {}", peer_)));
  }

  static Result<Answer> exchange(Stream& caller, BytesView packed) {
    const Deadline deadline = in(call_time);
    TRY(write_frame(caller, packed, deadline));
    return image::unpack<Answer>(TRY(read_frame(caller, answer_limit, deadline)));
  }

  Result<Stream> open() const {
    auto connection = links_.connect(peer_, service::store, call_time);
    if (connection) return connection;
    Error error = std::move(connection.error());
    error.kind = ErrorKind::unreachable;
    return std::unexpected(std::move(error).within("store"));
  }

  Result<Stream> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        Stream connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
    }
    return open();
  }

  void give_back(Stream connection) {
    const std::lock_guard lock(mutex_);
    if (idle_.size() < idle_limit) idle_.push_back(std::move(connection));
  }

  void drop_idle() {
    const std::lock_guard lock(mutex_);
    idle_.clear();
  }

  /// A first connection from the start on, and a question now and then that finds a broken one before a commit does.
  void keep_warm() {
    bool reachable = true;
    for (;;) {
      const auto answer = get("-");
      if (answer.has_value() != reachable) {
        reachable = answer.has_value();
        if (reachable)
          log::info("store on node {} answers again", peer_);
        else
          log::warn("{}", answer.error().message());
      }
      std::unique_lock lock(mutex_);
      const auto interval = reachable ? warm_interval : std::chrono::seconds(1);
      if (wake_.wait_for(lock, interval, [this] { return ending_; })) return;
    }
  }

  const Links& links_;
  const std::string peer_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::vector<Stream> idle_;
  std::thread warmer_;
};

}  // namespace

std::unique_ptr<store::Store> open_store_link(const Links& links, const std::string& peer) {
  return std::make_unique<StoreLink>(links, peer);
}

void serve_store(Stream& caller, const std::string& peer, store::Store& store, const MayChange& may) {
  // Somebody's freeze waits for a commit. What is done here is little, and other load is not to come before it.
  constexpr int priority = 10;
  const kernel::RaisedPriority raised(HostPid{::gettid()}, priority);
  for (;;) {
    // Peers ask every few seconds even when nothing happens: who is silent for a minute is gone.
    const auto frame = read_frame(caller, request_limit, in(std::chrono::minutes(1)));
    if (!frame) return;
    const auto request = image::unpack<Request>(*frame);
    if (!request) {
      log::warn("store: {}", request.error().message());
      return;
    }
    if (!write_frame(caller, image::pack(answer_to(*request, store, {peer, may})), in(call_time))) return;
  }
}

}  // namespace godwit::node
