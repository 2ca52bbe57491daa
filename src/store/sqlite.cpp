#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <filesystem>
#include <mutex>

#include "base/fd.hpp"
#include "store/store.hpp"

namespace godwit::store {
namespace {

constexpr int schema_version = 1;
constexpr int busy_timeout_ms = 5000;
constexpr std::size_t text_limit = 4096;

// An empty address is stored as NULL: a unique column may hold many of those.
constexpr const char* schema = R"(
  CREATE TABLE IF NOT EXISTS pods(
    pod TEXT PRIMARY KEY NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL CHECK(epoch >= 0),
    address TEXT UNIQUE, home TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TRIGGER IF NOT EXISTS epoch_never_goes_back BEFORE UPDATE ON pods WHEN new.epoch <= old.epoch
    BEGIN SELECT RAISE(ABORT, 'the epoch of a pod never goes back'); END;
)";

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
};
struct CloseStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;

std::unexpected<Error> fail_sqlite(sqlite3* database, std::string_view what) {
  const int code = sqlite3_errcode(database);
  const bool locked = code == SQLITE_BUSY || code == SQLITE_LOCKED;
  return fail(locked ? ErrorKind::unreachable : ErrorKind::failed, "store: {}: {}", what, sqlite3_errmsg(database));
}

/// One prepared statement in use: bound on creation, reset when the scope ends.
class Query {
 public:
  Query(sqlite3* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
  ~Query() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Query(const Query&) = delete;

  Query& bind(const std::string& text) {
    sqlite3_bind_text(statement_, next_++, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
    return *this;
  }
  Query& bind_or_null(const std::string& text) {
    if (!text.empty()) return bind(text);
    sqlite3_bind_null(statement_, next_++);
    return *this;
  }
  Query& bind(std::uint64_t number) {
    sqlite3_bind_int64(statement_, next_++, static_cast<sqlite3_int64>(number));
    return *this;
  }
  int step() { return sqlite3_step(statement_); }
  [[nodiscard]] int changes() const { return sqlite3_changes(database_); }

  [[nodiscard]] Record record() const {
    Record record;
    record.pod = text(0);
    record.id = text(1);
    record.owner = text(2);
    record.epoch = static_cast<std::uint64_t>(sqlite3_column_int64(statement_, 3));
    record.address = text(4);
    record.home = text(5);
    return record;
  }

 private:
  [[nodiscard]] std::string text(int column) const {
    const auto* value = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return value == nullptr ? std::string()
                            : std::string(value, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
  }

  sqlite3* database_;
  sqlite3_stmt* statement_;
  int next_ = 1;
};

class SqliteStore final : public Store {
 public:
  explicit SqliteStore(Database database) : database_(std::move(database)) {}

  Result<void> prepare() {
    create_ = TRY(prepared("INSERT INTO pods(pod, id, owner, epoch, address, home) VALUES(?, ?, ?, ?, ?, ?)"));
    get_ = TRY(prepared("SELECT pod, id, owner, epoch, address, home FROM pods WHERE pod = ?"));
    by_address_ = TRY(prepared("SELECT pod, id, owner, epoch, address, home FROM pods WHERE address = ?"));
    list_ = TRY(prepared("SELECT pod, id, owner, epoch, address, home FROM pods ORDER BY pod"));
    move_ = TRY(
        prepared("UPDATE pods SET owner = ?, epoch = epoch + 1 WHERE pod = ? AND id = ? AND owner = ? AND epoch = ?"));
    remove_ = TRY(prepared("DELETE FROM pods WHERE pod = ? AND id = ? AND owner = ? AND epoch = ?"));
    return {};
  }

  Result<void> create(const Record& record) override {
    const std::lock_guard lock(mutex_);
    if (record.pod.empty() || record.id.empty() || record.owner.empty() || record.pod.size() > text_limit ||
        record.id.size() > text_limit || record.owner.size() > text_limit || record.address.size() > text_limit ||
        record.home.size() > text_limit || record.epoch > INT64_MAX)
      return fail(ErrorKind::invalid, "store: record of pod '{}' is incomplete or too long", record.pod);
    Query query = use(create_);
    query.bind(record.pod).bind(record.id).bind(record.owner).bind(record.epoch).bind_or_null(record.address);
    const int code = query.bind(record.home).step();
    if (code == SQLITE_DONE) return {};
    if (code != SQLITE_CONSTRAINT) return fail_sqlite(database_.get(), "create " + record.pod);
    if (const auto taken = TRY(one(get_, record.pod)))
      return std::unexpected(Error{ErrorKind::busy,
                                   fmt::format("a pod named {} is on node {}", record.pod, taken->owner), 0,
                                   "choose another name, or remove it"});
    if (const auto taken = TRY(one(by_address_, record.address)))
      return fail(ErrorKind::busy, "address {} belongs to pod {} on node {}", record.address, taken->pod, taken->owner);
    return fail_sqlite(database_.get(), "create " + record.pod);
  }

  Result<std::optional<Record>> get(const std::string& pod) override {
    const std::lock_guard lock(mutex_);
    return one(get_, pod);
  }

  Result<std::vector<Record>> list() override {
    const std::lock_guard lock(mutex_);
    Query query = use(list_);
    std::vector<Record> records;
    for (;;) {
      const int code = query.step();
      if (code == SQLITE_DONE) return records;
      if (code != SQLITE_ROW) return fail_sqlite(database_.get(), "list");
      records.push_back(query.record());
    }
  }

  Result<bool> move(const Record& expected, const std::string& new_owner) override {
    const std::lock_guard lock(mutex_);
    if (new_owner.empty() || new_owner.size() > text_limit)
      return fail(ErrorKind::invalid, "store: '{}' can't own a pod", new_owner);
    Query query = use(move_);
    query.bind(new_owner).bind(expected.pod).bind(expected.id).bind(expected.owner).bind(expected.epoch);
    if (query.step() != SQLITE_DONE) return fail_sqlite(database_.get(), "move " + expected.pod);
    return query.changes() == 1;
  }

  Result<bool> remove(const Record& expected) override {
    const std::lock_guard lock(mutex_);
    Query query = use(remove_);
    query.bind(expected.pod).bind(expected.id).bind(expected.owner).bind(expected.epoch);
    if (query.step() != SQLITE_DONE) return fail_sqlite(database_.get(), "remove " + expected.pod);
    return query.changes() == 1;
  }

 private:
  using Statement = std::unique_ptr<sqlite3_stmt, CloseStatement>;

  Result<Statement> prepared(const char* text) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(database_.get(), text, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK)
      return fail_sqlite(database_.get(), "prepare");
    return Statement(statement);
  }
  Query use(const Statement& statement) { return Query(database_.get(), statement.get()); }

  Result<std::optional<Record>> one(const Statement& statement, const std::string& key) {
    Query query = use(statement);
    const int code = query.bind(key).step();
    if (code == SQLITE_ROW) return query.record();
    if (code == SQLITE_DONE) return std::nullopt;
    return fail_sqlite(database_.get(), "read " + key);
  }

  std::mutex mutex_;
  Database database_;
  // Finalised before the database is closed.
  Statement create_, get_, by_address_, list_, move_, remove_;
};

Result<void> execute(sqlite3* database, const char* text) {
  if (sqlite3_exec(database, text, nullptr, nullptr, nullptr) != SQLITE_OK) return fail_sqlite(database, text);
  return {};
}

Result<int> user_version(sqlite3* database) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database, "PRAGMA user_version", -1, &statement, nullptr) != SQLITE_OK)
    return fail_sqlite(database, "read the version");
  const std::unique_ptr<sqlite3_stmt, CloseStatement> owner(statement);
  if (sqlite3_step(statement) != SQLITE_ROW) return fail_sqlite(database, "read the version");
  return sqlite3_column_int(statement, 0);
}

}  // namespace

Result<std::unique_ptr<Store>> open_sqlite(const std::string& path) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  // Made here so that the file is never readable by others, not even for a moment; SQLite gives -wal and -shm its mode.
  if (const Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); !file)
    return fail_errno("store {}", path);
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  Database database(raw);
  if (code != SQLITE_OK) return fail(ErrorKind::failed, "store {}: {}", path, sqlite3_errstr(code));
  sqlite3_busy_timeout(raw, busy_timeout_ms);
  TRY(execute(raw, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"));
  // A commit that is written over blocks which the log file has already is one flush of the disk; where the file grows,
  // its file system writes a journal too. The log is as long as it ever gets from here on (wal_autocheckpoint: 1,000
  // pages).
  TRY(execute(raw,
              "DROP TABLE IF EXISTS room; CREATE TABLE room(bytes); INSERT INTO room VALUES(zeroblob(4300000));"
              "DROP TABLE room; PRAGMA wal_checkpoint(RESTART)"));
  const int version = TRY(user_version(raw));
  if (version > schema_version)
    return fail(ErrorKind::refused, "store {} was written by a newer godwit (version {}, this one knows {})", path,
                version, schema_version);
  TRY(execute(raw, schema));
  if (version < schema_version) TRY(execute(raw, "PRAGMA user_version = 1"));
  auto store = std::make_unique<SqliteStore>(std::move(database));
  TRY(store->prepare());
  return store;
}

}  // namespace godwit::store
