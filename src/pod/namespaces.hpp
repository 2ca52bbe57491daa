#pragma once

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::pod {

/// Descriptors of a pod's namespaces, taken from its init.
struct Namespaces {
  Fd pid, mount, net, ipc, uts, time, cgroup;

  static Result<Namespaces> of(HostPid init);
};

}  // namespace godwit::pod
