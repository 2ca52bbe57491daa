#pragma once

#include <string>

#include "base/result.hpp"

namespace godwit::pod {

/// A pod's root: an overlay of the node's root directory (its one file system: what is mounted below it isn't seen) and
/// the pod's own writes.
struct Root {
  std::string upper, work, merged;  ///< directories, the first two on one file system that isn't an overlay
  std::string hidden;               ///< covered by an empty directory where the pod would see it
};

/// Why an upper layer can't lie in `directory`; refused with the reason.
Result<void> check_upper_place(const std::string& directory);

/// Makes the caller's mount namespace the pod's: the overlay as root, and fresh /proc, /sys (read-only), /dev, /dev/pts
/// and /dev/shm. Everything else (/run, /tmp) lies on the overlay, so that it travels. To be called in a new mount
/// namespace by the first process of a new pid namespace.
Result<void> enter_root(const Root&);

/// Makes what is the node's in /proc read-only from here on (sysctl, interrupts, sysrq): the kernel lets user 0 write
/// there without asking for any capability. Descriptors from before stay what they are.
Result<void> close_node_settings();

}  // namespace godwit::pod
