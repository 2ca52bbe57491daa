#pragma once

#include <cstdint>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/remote.hpp"
#include "kernel/userfaultfd.hpp"
#include "migrate/tree.hpp"
#include "objects/pod_clock.hpp"

namespace godwit::migrate {

/// A userfaultfd made inside a running process, for asynchronous write-protection, and the gadget that stays there
/// until the process has moved.
struct Tracking {
  kernel::Userfaultfd tracker;
  kernel::Gadget gadget;
  std::uint64_t pause_us = 0;  ///< for which one thread stood still
};

/// Stops one thread of the process for as long as it takes, the others run on. The userfaultfd is made by a short-lived
/// thread with a descriptor table of its own, so that no number in the program's table is taken even for a moment.
/// `gone` when the process isn't the pod's whose init this is any more.
Result<Tracking> begin_tracking(HostPid init, ThreadIds process, const objects::PodClock&);

/// Takes the gadget out again. Returns how long a thread stood still (us).
Result<std::uint64_t> remove_gadget(HostPid init, ThreadIds process, kernel::Gadget&, const objects::PodClock&);

}  // namespace godwit::migrate
