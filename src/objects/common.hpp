#pragma once

#include "objects/kind.hpp"

namespace godwit::objects {

/// What every open file description has, whatever its kind: who is told by signal that it is ready. For the spine.
struct Common {
  int owner_type = -1;  ///< F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP; -1: none
  PodPid owner;
  int signal = 0;      ///< F_SETSIG; 0: SIGIO
  bool async = false;  ///< O_ASYNC
  [[nodiscard]] bool empty() const { return owner_type < 0 && signal == 0 && !async; }
  MSGPACK_DEFINE_MAP(owner_type, owner, signal, async)
};

/// Refused when the owner is no process of the pod's.
Result<Common> capture_common(const Descriptor&, Source&);
/// On a description just built; the owner must exist already. The kernel remembers the caller (root) as who set the
/// owner.
Result<void> apply_common(const Common&, int fd, Destination&);

}  // namespace godwit::objects
