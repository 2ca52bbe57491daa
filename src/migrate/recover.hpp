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

/// A thread that is raised for the freeze, as it was before.
struct RaisedThread {
  pid_t tid = 0;                 ///< on this machine
  std::uint64_t start_time = 0;  ///< with the number, its identity
  int policy = 0, priority = 0;
  std::uint64_t timer_slack = 0;  ///< ns
  MSGPACK_DEFINE_MAP(tid, start_time, policy, priority, timer_slack)
};

/// The file `migrating` in the pod's directory. That it is there says that a migration was under way, or that the
/// other side still has something of the pod.
struct Journal {
  bool arriving = false;          ///< to this node
  std::string move;               ///< the migration's id
  std::string peer;               ///< the other node
  store::Record record;           ///< before the commit
  Bytes gadget;                   ///< its code, by which its pages are known again
  std::uint64_t gadget_size = 0;  ///< of all its pages
  std::vector<RaisedThread> threads;
  MSGPACK_DEFINE_MAP(arriving, move, peer, record, gadget, gadget_size, threads)

  /// With this program's gadget, and no thread yet.
  static Journal begin(bool arriving, const std::string& move, const std::string& peer, const store::Record&);
  /// A thread that is about to be raised. One that has just ended is left out.
  void add(HostPid thread);
};

/// Atomically: a reader finds the journal as it was before or as it is now. It outlives this program, not the machine,
/// as the pod does.
Result<void> write_journal(const pod::Pod&, const Journal&);
/// From a pod's directory. nullopt when no migration was under way; `invalid` when it isn't one, or too large.
Result<std::optional<Journal>> read_journal(const std::string& directory);
void remove_journal(const pod::Pod&);

/// First half, while the pod may still be frozen: no socket stays in repair mode, no thread in the freeze's real-time
/// class. Errors are logged: nothing keeps the pod.
void recover_frozen(pod::Pod&, const Journal&);
/// Second half, when it runs: the gadget's pages are found by what stands in them, and unmapped. True when
/// nothing is left to be undone.
bool recover_running(pod::Pod&, const Journal&);

}  // namespace godwit::migrate
