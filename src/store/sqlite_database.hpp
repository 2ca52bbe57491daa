#pragma once

#include <sqlite3.h>

#include <memory>
#include <string>

#include "base/result.hpp"

/// As much of SQLite as the store needs, with our errors.
namespace godwit::store {

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
};
struct CloseStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;
/// Finalised before its database is closed.
using Statement = std::unique_ptr<sqlite3_stmt, CloseStatement>;

/// What SQLite says now; `unreachable` when another connection has the lock.
std::unexpected<Error> fail_sqlite(sqlite3*, std::string_view what);

/// Opens it for this thread-at-a-time, in WAL mode. Made with mode 0600 where it isn't there.
Result<Database> open_database(const std::string& path);
Result<void> execute(sqlite3*, const char* text);
Result<Statement> prepare(sqlite3*, const char* text);
/// The number that we keep in the file: version of its schema.
Result<int> user_version(sqlite3*);

/// One prepared statement in use: bound on creation, reset when the scope ends. Texts that are bound have to live as
/// long.
class Query {
 public:
  explicit Query(const Statement& statement) : statement_(statement.get()) {}
  ~Query() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;

  Query& bind(const std::string& text);
  Query& bind_or_null(const std::string& text);
  Query& bind(std::uint64_t number);
  int step() { return sqlite3_step(statement_); }
  [[nodiscard]] int changes() const { return sqlite3_changes(sqlite3_db_handle(statement_)); }

  /// Columns of the row that `step` has found.
  [[nodiscard]] std::string text(int column) const;
  [[nodiscard]] std::uint64_t number(int column) const;

 private:
  sqlite3_stmt* statement_;
  int next_ = 1;
};

}  // namespace godwit::store
