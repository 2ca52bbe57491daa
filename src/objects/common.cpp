#include "objects/common.hpp"

#include <fcntl.h>

namespace godwit::objects {

Result<Common> capture_common(const Descriptor& descriptor, Source& source) {
  Common common;
  if ((descriptor.flags & O_PATH) != 0) return common;
  struct f_owner_ex owner {};
  if (::fcntl(descriptor.fd, F_GETOWN_EX, &owner) < 0) return fail_errno("F_GETOWN_EX {}", descriptor.link);
  common.signal = ::fcntl(descriptor.fd, F_GETSIG);
  if (common.signal < 0) return fail_errno("F_GETSIG {}", descriptor.link);
  common.async = (descriptor.flags & O_ASYNC) != 0;
  // An owner that has exited shows as 0: nobody is told any more, here or there.
  if (owner.pid == 0) return common;
  const auto pid = source.pod_pid(HostPid{owner.pid});
  if (!pid) return fail(ErrorKind::refused, "{}: signals go to process {} outside the pod", descriptor.link, owner.pid);
  common.owner_type = owner.type;
  common.owner = *pid;
  return common;
}

Result<void> apply_common(const Common& common, int fd, Destination& destination) {
  if (common.owner_type >= 0) {
    const auto pid = destination.host_pid(common.owner);
    if (!pid) return fail(ErrorKind::invalid, "the owner {} of a descriptor is not in the pod", common.owner.value);
    struct f_owner_ex owner {};
    owner.type = static_cast<decltype(owner.type)>(common.owner_type);
    owner.pid = pid->value;
    if (::fcntl(fd, F_SETOWN_EX, &owner) < 0) return fail_errno("F_SETOWN_EX {}", owner.pid);
  }
  if (common.signal != 0 && ::fcntl(fd, F_SETSIG, common.signal) < 0) return fail_errno("F_SETSIG {}", common.signal);
  if (common.async) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_ASYNC) < 0) return fail_errno("O_ASYNC");
  }
  return {};
}

}  // namespace godwit::objects
