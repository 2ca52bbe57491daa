#pragma once

#include <optional>
#include <string>
#include <vector>

#include "image/codec.hpp"
#include "migrate/freeze.hpp"
#include "pod/pod.hpp"
#include "store/store.hpp"

/// What a migration changes in a pod that runs on here if the daemon dies in the middle: written down before it is
/// changed, undone by the daemon that takes the pod over.
namespace godwit::migrate {

/// The file `migrating` in the pod's directory. That it is there says that a migration was under way, or that the
/// other side still has something of the pod.
struct Journal {
  bool arriving = false;          ///< to this node
  std::string move;               ///< the migration's id
  std::string peer;               ///< the other node
  std::string strategy;           ///< as asked for; at the source, for the history
  std::int64_t began_ms = 0;      ///< since 1970; the same
  store::Record record;           ///< before the commit
  Bytes gadget;                   ///< its code, by which its pages are known again
  std::uint64_t gadget_size = 0;  ///< of all its pages
  MSGPACK_DEFINE_MAP(arriving, move, peer, strategy, began_ms, record, gadget, gadget_size)

  /// With this program's gadget.
  static Journal begin(bool arriving, const std::string& move, const std::string& peer, const store::Record&);
};

/// Atomically: a reader finds the journal as it was before or as it is now. It outlives this program, not the machine,
/// as the pod does.
Result<void> write_journal(const pod::Pod&, const Journal&);
/// From a pod's directory. nullopt when no migration was under way; `invalid` when it isn't one, or too large.
Result<std::optional<Journal>> read_journal(const std::string& directory);
void remove_journal(const pod::Pod&);

/// First half, while the pod may still be frozen: no socket stays in repair mode. Its threads' priorities are its
/// init's (pod/raised_threads). Errors are logged: nothing keeps the pod.
void recover_frozen(pod::Pod&, const Journal&);
/// Second half, when it runs: the gadget's pages are found by what stands in them, and unmapped. True when
/// nothing is left to be undone.
bool recover_running(pod::Pod&, const Journal&);

}  // namespace godwit::migrate
