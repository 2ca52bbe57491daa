#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "store/sqlite_database.hpp"
#include "store/store.hpp"

namespace godwit::store {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int schema_version = 2;
/// A write that changes nothing.
constexpr const char* touch = "PRAGMA user_version = 2";

// An empty address is stored as NULL: a unique column may hold many of those.
constexpr const char* schema = R"(
  CREATE TABLE IF NOT EXISTS pods(
    pod TEXT PRIMARY KEY NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL CHECK(epoch >= 0),
    address TEXT UNIQUE, home TEXT NOT NULL, user INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TRIGGER IF NOT EXISTS epoch_never_goes_back BEFORE UPDATE ON pods WHEN new.epoch <= old.epoch
    BEGIN SELECT RAISE(ABORT, 'the epoch of a pod never goes back'); END;
)";

// What is told over and over, in a file of its own: no commit of a move ever waits for it.
constexpr const char* notes_schema = R"(
  CREATE TABLE IF NOT EXISTS notes(
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, leased INTEGER NOT NULL,
    PRIMARY KEY(kind, key)) STRICT, WITHOUT ROWID;
)";

/// The log is written back in the background: not by a commit, which somebody's freeze waits for. As long as it is
/// shorter than what was prepared at the start, a commit writes over blocks that the file has already.
class Checkpointer {
 public:
  static constexpr std::size_t room = 4'300'000;  ///< bytes that are prepared; some 1,040 frames
  static constexpr int enough = 256;              ///< frames, when nobody has committed for `quiet`
  static constexpr int most = 900;                ///< frames, whoever commits
  static constexpr std::chrono::seconds quiet{1};

  /// `alone` keeps others from writing.
  Checkpointer(sqlite3* watched, Database own, std::mutex& alone) : own_(std::move(own)), alone_(alone) {
    sqlite3_wal_hook(watched, &committed, this);
    thread_ = std::thread([this] { keep_going("the store's checkpoints", [this] { work(); }); });
  }
  ~Checkpointer() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  static int committed(void* self, sqlite3*, const char*, int frames) {
    static_cast<Checkpointer*>(self)->frames_ = frames;
    return SQLITE_OK;
  }

  void work() {
    int seen = 0;
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, quiet, [this] { return ending_; })) {
      const int frames = frames_;
      const bool now = frames >= most || (frames >= enough && frames == seen);
      seen = frames;
      if (!now) continue;
      lock.unlock();
      if (const auto done = checkpoint(); !done) log::warn("{}", done.error().message());
      lock.lock();
    }
  }

  Result<void> checkpoint() {
    if (sqlite3_wal_checkpoint_v2(own_.get(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr) != SQLITE_OK)
      return fail_sqlite(own_.get(), "checkpoint");
    // The next write begins the log anew, which costs a flush of its header: that isn't to be a commit's either.
    const std::lock_guard nobody(alone_);
    frames_ = 0;
    return execute(own_.get(), touch);
  }

  Database own_;
  std::mutex& alone_;
  std::atomic<int> frames_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  std::thread thread_;
};

class SqliteStore final : public Store {
 public:
  SqliteStore(Database pods, Database notes) : pods_(std::move(pods)), notes_(std::move(notes)) {}

  Result<void> prepare_all(Database for_checkpoints) {
    const auto pods = [&](const char* text) { return prepare(pods_.get(), text); };
    const auto notes = [&](const char* text) { return prepare(notes_.get(), text); };
    create_ = TRY(pods("INSERT INTO pods(pod, id, owner, epoch, address, home, user) VALUES(?, ?, ?, ?, ?, ?, ?)"));
    get_ = TRY(pods("SELECT pod, id, owner, epoch, address, home, user FROM pods WHERE pod = ?"));
    by_address_ = TRY(pods("SELECT pod, id, owner, epoch, address, home, user FROM pods WHERE address = ?"));
    list_ = TRY(pods("SELECT pod, id, owner, epoch, address, home, user FROM pods ORDER BY pod"));
    move_ =
        TRY(pods("UPDATE pods SET owner = ?, epoch = epoch + 1 WHERE pod = ? AND id = ? AND owner = ? AND epoch = ?"));
    remove_ = TRY(pods("DELETE FROM pods WHERE pod = ? AND id = ? AND owner = ? AND epoch = ?"));
    put_ = TRY(notes("INSERT OR REPLACE INTO notes(kind, key, value, leased) VALUES(?, ?, ?, ?)"));
    trim_ =
        TRY(notes("DELETE FROM notes WHERE kind = ?1 AND key <= "
                  "(SELECT key FROM notes WHERE kind = ?1 ORDER BY key DESC LIMIT 1 OFFSET ?2)"));
    notes_of_ =
        TRY(notes("SELECT kind, key, value, leased FROM notes WHERE kind = ?1 AND (?2 = '' OR key = ?2) ORDER BY key"));
    erase_ = TRY(notes("DELETE FROM notes WHERE kind = ? AND key = ?"));
    checkpointer_ = std::make_unique<Checkpointer>(pods_.get(), std::move(for_checkpoints), mutex_);
    return {};
  }

  Result<void> create(const Record& record) override {
    TRY(check(record));
    const std::lock_guard lock(mutex_);
    Query query(create_);
    query.bind(record.pod).bind(record.id).bind(record.owner).bind(record.epoch).bind_or_null(record.address);
    const int code = query.bind(record.home).bind(record.user).step();
    if (code == SQLITE_DONE) note_change();
    if (code == SQLITE_DONE) return {};
    if (code != SQLITE_CONSTRAINT) return fail_sqlite(pods_.get(), "create " + record.pod);
    if (const auto taken = TRY(one(get_, record.pod))) return std::unexpected(name_taken(*taken));
    if (const auto taken = TRY(one(by_address_, record.address))) return std::unexpected(address_taken(*taken));
    return fail_sqlite(pods_.get(), "create " + record.pod);
  }

  Result<std::optional<Record>> get(const std::string& pod) override {
    const std::lock_guard lock(mutex_);
    return one(get_, pod);
  }

  Result<std::vector<Record>> list() override {
    const std::lock_guard lock(mutex_);
    Query query(list_);
    std::vector<Record> records;
    for (;;) {
      const int code = query.step();
      if (code == SQLITE_DONE) return records;
      if (code != SQLITE_ROW) return fail_sqlite(pods_.get(), "list");
      records.push_back(record_in(query));
    }
  }

  Result<bool> move(const Record& expected, const std::string& new_owner) override {
    if (new_owner.empty() || new_owner.size() > text_limit)
      return fail(ErrorKind::invalid, "store: '{}' can't own a pod", new_owner.substr(0, 100));
    const std::lock_guard lock(mutex_);
    Query query(move_);
    query.bind(new_owner).bind(expected.pod).bind(expected.id).bind(expected.owner).bind(expected.epoch);
    if (query.step() != SQLITE_DONE) return fail_sqlite(pods_.get(), "move " + expected.pod);
    if (query.changes() == 1) note_change();
    return query.changes() == 1;
  }

  Result<bool> remove(const Record& expected) override {
    const std::lock_guard lock(mutex_);
    Query query(remove_);
    query.bind(expected.pod).bind(expected.id).bind(expected.owner).bind(expected.epoch);
    if (query.step() != SQLITE_DONE) return fail_sqlite(pods_.get(), "remove " + expected.pod);
    if (query.changes() == 1) note_change();
    return query.changes() == 1;
  }

  Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) override {
    std::unique_lock lock(change_mutex_);
    change_.wait_for(lock, limit, [&] { return state_ != since; });
    return state_;
  }

  Result<void> put(const Note& note, const Keep& keep) override {
    TRY(check(note));
    const std::lock_guard lock(notes_mutex_);
    const bool leased = keep.lease.count() > 0;
    {
      Query query(put_);
      if (query.bind(note.kind).bind(note.key).bind(note.value).bind(leased ? 1 : 0).step() != SQLITE_DONE)
        return fail_sqlite(notes_.get(), "note " + note.key);
    }
    if (leased) leases_[{note.kind, note.key}] = Clock::now() + keep.lease;
    if (keep.most == 0) return {};
    Query query(trim_);
    if (query.bind(note.kind).bind(keep.most).step() != SQLITE_DONE) return fail_sqlite(notes_.get(), "trim notes");
    return {};
  }

  Result<std::vector<Note>> notes(const std::string& kind, const std::string& key) override {
    const std::lock_guard lock(notes_mutex_);
    Query query(notes_of_);
    query.bind(kind).bind(key);
    std::vector<Note> all;
    for (;;) {
      const int code = query.step();
      if (code == SQLITE_DONE) return all;
      if (code != SQLITE_ROW) return fail_sqlite(notes_.get(), "read notes");
      Note note{query.text(0), query.text(1), query.text(2), false};
      note.away = query.number(3) != 0 && !renewed(note);
      all.push_back(std::move(note));
    }
  }

  Result<void> erase(const std::string& kind, const std::string& key) override {
    const std::lock_guard lock(notes_mutex_);
    Query query(erase_);
    if (query.bind(kind).bind(key).step() != SQLITE_DONE) return fail_sqlite(notes_.get(), "forget " + key);
    leases_.erase({kind, key});
    return {};
  }

 private:
  void note_change() {
    const std::lock_guard lock(change_mutex_);
    state_++;
    change_.notify_all();
  }

  static Record record_in(const Query& query) {
    return {query.text(0),
            query.text(1),
            query.text(2),
            query.number(3),
            query.text(4),
            query.text(5),
            static_cast<std::uint32_t>(query.number(6))};
  }

  Result<std::optional<Record>> one(const Statement& statement, const std::string& key) {
    Query query(statement);
    const int code = query.bind(key).step();
    if (code == SQLITE_ROW) return record_in(query);
    if (code == SQLITE_DONE) return std::nullopt;
    return fail_sqlite(pods_.get(), "read " + key);
  }

  /// By this machine's clock, and since this daemon began: nobody is said to be there who hasn't been heard since.
  [[nodiscard]] bool renewed(const Note& note) const {
    const auto found = leases_.find({note.kind, note.key});
    return found != leases_.end() && Clock::now() < found->second;
  }

  std::mutex mutex_;
  Database pods_;
  Statement create_, get_, by_address_, list_, move_, remove_;
  std::mutex change_mutex_;
  std::condition_variable change_;
  /// Nobody else writes: counting is enough. Begins with the time, so that no state of an earlier daemon is this one's.
  std::uint64_t state_ = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::mutex notes_mutex_;
  Database notes_;
  Statement put_, trim_, notes_of_, erase_;
  std::map<std::pair<std::string, std::string>, Clock::time_point> leases_;
  std::unique_ptr<Checkpointer> checkpointer_;
};

Result<Database> open_pods(const std::string& path) {
  Database database = TRY(open_database(path));
  sqlite3* raw = database.get();
  const int version = TRY(user_version(raw));
  if (version > schema_version)
    return fail(ErrorKind::refused, "store {} was written by a newer godwit (version {}, this one knows {})", path,
                version, schema_version);
  TRY(execute(raw, "PRAGMA synchronous = FULL"));
  TRY(execute(raw, schema));
  // A commit that is written over blocks which the log file has already is one flush of the disk; where the file grows,
  // its file system writes a journal too. The last write is the first in the restarted log: its header is flushed.
  const std::string prepare_log = fmt::format(
      "DROP TABLE IF EXISTS room; CREATE TABLE room(bytes); INSERT INTO room VALUES(zeroblob({})); DROP TABLE room;"
      "PRAGMA wal_checkpoint(RESTART); {}",
      Checkpointer::room, touch);
  TRY(execute(raw, prepare_log.c_str()));
  return database;
}

}  // namespace

Result<std::unique_ptr<Store>> open_sqlite(const std::string& path) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  Database pods = TRY(open_pods(path));
  Database notes = TRY(open_database(path + "-notes"));
  // A note is written without a flush: what the machine's end may cost is the newest of them.
  TRY(execute(notes.get(), "PRAGMA synchronous = NORMAL"));
  TRY(execute(notes.get(), notes_schema));
  Database for_checkpoints = TRY(open_database(path));
  TRY(execute(for_checkpoints.get(), "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0"));
  auto store = std::make_unique<SqliteStore>(std::move(pods), std::move(notes));
  TRY(store->prepare_all(std::move(for_checkpoints)));
  return store;
}

}  // namespace godwit::store
