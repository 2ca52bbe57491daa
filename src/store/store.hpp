#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "image/codec.hpp"

/// Where it is written who owns a pod, and what else nodes tell each other. Small on purpose: a move is one
/// compare-and-swap, whatever stands behind it.
namespace godwit::store {

/// The ownership record of a pod.
struct Record {
  std::string pod;          ///< name
  std::string id;           ///< Spec::id
  std::string owner;        ///< node that may run it
  std::uint64_t epoch = 0;  ///< grows by one with every change of owner; never goes back
  std::string address;      ///< first of its addresses, for lists
  std::string home;         ///< where it was created
  std::uint32_t user = 0;   ///< whose it is
  MSGPACK_DEFINE_MAP(pod, id, owner, epoch, address, home, user)
};

/// What a node tells the others: who it is, what it has done.
struct Note {
  std::string kind;   ///< "node", "move", "report"; [a-z]
  std::string key;    ///< unique within its kind, and what it is sorted by
  std::string value;  ///< JSON
  bool away = false;  ///< read: it had a lease, and its author hasn't renewed it
  MSGPACK_DEFINE_MAP(kind, key, value, away)
};

/// How long a note stays.
struct Keep {
  /// 0: for good. Otherwise its author writes it again within this time, measured by the store's own clock, or the note
  /// is `away`. It is not forgotten.
  std::chrono::seconds lease{0};
  std::uint64_t most = 0;  ///< of its kind; those with the lowest keys go. 0: no limit
};

inline constexpr std::size_t text_limit = 4096;        ///< each text of a record, and a note's key
inline constexpr std::size_t value_limit = 256 * KiB;  ///< a note's value

/// Thread-safe. Every call may block for as long as the store takes, some seconds at most; `unreachable` when it can't
/// be asked or its answer was lost for good.
class Store {
 public:
  virtual ~Store() = default;
  /// `busy` (with the owner in the text) when the name is taken. Also reserves the record's address: no two pods have
  /// the same.
  virtual Result<void> create(const Record&) = 0;
  virtual Result<std::optional<Record>> get(const std::string& pod) = 0;
  /// Sorted by name.
  virtual Result<std::vector<Record>> list() = 0;
  /// Sets owner and epoch + 1 if the record still has `expected`'s id, owner and epoch. False when it hasn't: somebody
  /// else was first. One round trip, as long as `expected` is what was read.
  virtual Result<bool> move(const Record& expected, const std::string& new_owner) = 0;
  /// Removes the record if id, owner and epoch are still these.
  virtual Result<bool> remove(const Record& expected) = 0;

  /// Waits until a record was made, moved or removed since the state that an earlier call gave, or until the time is
  /// over: the state now. At once for a state that it doesn't know, such as 0. What has changed isn't said.
  virtual Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) = 0;

  /// Writes a note, over an older one. Not as durable as a record: the newest may be lost when the store's machine is.
  virtual Result<void> put(const Note&, const Keep& = {}) = 0;
  /// All of a kind, sorted by key; or that one only.
  virtual Result<std::vector<Note>> notes(const std::string& kind, const std::string& key = {}) = 0;
  virtual Result<void> erase(const std::string& kind, const std::string& key) = 0;
};

/// `invalid` for what no store takes: incomplete, or over the limits.
Result<void> check(const Record&);
Result<void> check(const Note&);

/// The errors of `create`, the same in every store.
Error name_taken(const Record& by);
Error address_taken(const Record& by);

/// SQLite in a file, and PATH-notes beside it. One daemon opens it; the others ask that daemon (node/store_link).
Result<std::unique_ptr<Store>> open_sqlite(const std::string& path);

/// A cluster of etcd: "etcd://HOST:PORT,HOST:PORT/PREFIX", see store/etcd.hpp.
Result<std::unique_ptr<Store>> open_etcd(const std::string& url);

}  // namespace godwit::store
