#include "store/sqlite_database.hpp"

#include <fcntl.h>

#include "base/fd.hpp"

namespace godwit::store {

namespace {
constexpr int busy_timeout_ms = 5000;
}

std::unexpected<Error> fail_sqlite(sqlite3* database, std::string_view what) {
  const int code = sqlite3_errcode(database);
  const bool locked = code == SQLITE_BUSY || code == SQLITE_LOCKED;
  return fail(locked ? ErrorKind::unreachable : ErrorKind::failed, "store: {}: {}", what, sqlite3_errmsg(database));
}

Result<Database> open_database(const std::string& path) {
  // Made here so that the file is never readable by others, not even for a moment; SQLite gives -wal and -shm its mode.
  if (const Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); !file)
    return fail_errno("store {}", path);
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  Database database(raw);
  if (code != SQLITE_OK) return fail(ErrorKind::failed, "store {}: {}", path, sqlite3_errstr(code));
  sqlite3_busy_timeout(raw, busy_timeout_ms);
  TRY(execute(raw, "PRAGMA journal_mode = WAL"));
  return database;
}

Result<void> execute(sqlite3* database, const char* text) {
  if (sqlite3_exec(database, text, nullptr, nullptr, nullptr) != SQLITE_OK) return fail_sqlite(database, text);
  return {};
}

Result<Statement> prepare(sqlite3* database, const char* text) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v3(database, text, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK)
    return fail_sqlite(database, "prepare");
  return Statement(statement);
}

Result<int> user_version(sqlite3* database) {
  const Statement statement = TRY(prepare(database, "PRAGMA user_version"));
  Query query(statement);
  if (query.step() != SQLITE_ROW) return fail_sqlite(database, "read the version");
  return static_cast<int>(query.number(0));
}

Query& Query::bind(const std::string& text) {
  sqlite3_bind_text(statement_, next_++, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
  return *this;
}

Query& Query::bind_or_null(const std::string& text) {
  if (!text.empty()) return bind(text);
  sqlite3_bind_null(statement_, next_++);
  return *this;
}

Query& Query::bind(std::uint64_t number) {
  sqlite3_bind_int64(statement_, next_++, static_cast<sqlite3_int64>(number));
  return *this;
}

std::string Query::text(int column) const {
  const auto* value = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return value == nullptr ? std::string()
                          : std::string(value, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

std::uint64_t Query::number(int column) const {
  return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
}

}  // namespace godwit::store
