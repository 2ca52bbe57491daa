#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "image/codec.hpp"

/// Where it is written who owns a pod. Small on purpose: a move is one compare-and-swap, whatever stands behind it.
namespace godwit::store {

/// The ownership record of a pod.
struct Record {
  std::string pod;          ///< name
  std::string id;           ///< Spec::id
  std::string owner;        ///< node that may run it
  std::uint64_t epoch = 0;  ///< grows by one with every change of owner; never goes back
  std::string address;      ///< first of its addresses, for lists
  std::string home;         ///< where it was created
  MSGPACK_DEFINE_MAP(pod, id, owner, epoch, address, home)
};

/// Thread-safe. Every call may block for as long as the store takes; `unreachable` when it can't be asked.
class Store {
 public:
  virtual ~Store() = default;
  /// `busy` (with the owner in the text) when the name is taken. Also reserves the record's address: no two pods have
  /// the same.
  virtual Result<void> create(const Record&) = 0;
  virtual Result<std::optional<Record>> get(const std::string& pod) = 0;
  virtual Result<std::vector<Record>> list() = 0;
  /// Sets owner and epoch + 1 if the record still has `expected`'s id, owner and epoch. False when it hasn't: somebody
  /// else was first.
  virtual Result<bool> move(const Record& expected, const std::string& new_owner) = 0;
  /// Removes the record if owner and epoch are still these.
  virtual Result<bool> remove(const Record& expected) = 0;
};

/// SQLite in a file. One daemon opens it; the others ask that daemon (node/store_link).
Result<std::unique_ptr<Store>> open_sqlite(const std::string& path);

}  // namespace godwit::store
