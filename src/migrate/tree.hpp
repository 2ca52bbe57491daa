#pragma once

#include <string>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/procfs.hpp"

namespace godwit::migrate {

/// A thread in both numberings.
struct ThreadIds {
  HostPid host;
  PodPid pod;
};

/// One process of a pod, as the kernel shows it from outside.
struct ProcessIds {
  HostPid host;
  PodPid pod;
  PodPid parent;  ///< 1: the pod's init
  PodPid group;   ///< 0: a group of another pid namespace (the init's own)
  PodPid session;
  bool zombie = false;
  int exit_code = 0;               ///< of a zombie, as wait gives it
  std::string name;                ///< comm; of a zombie the only thing that is left to see
  bool shares_files = false;       ///< its descriptor table is its parent's (CLONE_FILES)
  bool shares_filesystem = false;  ///< its root, working directory and umask are its parent's (CLONE_FS)
  bool shares_memory = false;      ///< its memory is its parent's (CLONE_VM): most likely by vfork
  int exit_signal = 0;             ///< to the parent, usually SIGCHLD
  std::vector<ThreadIds> threads;  ///< leader first; an exited leader too (with `leader_exited`)
  bool leader_exited = false;
  kernel::Status status;  ///< the leader's
  /// Through whom memory and tables are reached: a dead leader has neither.
  [[nodiscard]] HostPid body() const { return leader_exited ? threads.front().host : host; }
};

/// Whether the thread is one of this process of the pod whose init this is, and (unless it is 0) has this number there.
/// Numbers that were read a while ago may be somebody else's: whoever has been collected has left his. What is said
/// here holds for as long as the thread is one that can't be collected, a tracee of ours.
[[nodiscard]] bool is_of(HostPid init, PodPid process, HostPid thread, PodPid number = {});

/// All descendants of the pod's init, parents before children. Exact only while nothing of it runs.
Result<std::vector<ProcessIds>> read_tree(HostPid init);

/// Brings a tree up to date in which nobody has been born, all threads that live are still there and stopped, and
/// nobody else has ended: only what a process can change of itself is read again, and none of its threads. False when a
/// zombie has gone: then the tree is another one.
Result<bool> refresh_tree(std::vector<ProcessIds>& tree);

/// Threads of one process that are alive, leader first.
Result<std::vector<ThreadIds>> read_threads(HostPid process);

}  // namespace godwit::migrate
