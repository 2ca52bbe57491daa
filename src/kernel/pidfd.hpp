#pragma once

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::kernel {

/// pidfd_open; `thread` uses PIDFD_THREAD (Linux 6.9), needed when the leader has exited.
Result<Fd> pidfd_open(HostPid, bool thread = false);
/// A duplicate of another process's descriptor, close-on-exec here.
Result<Fd> pidfd_getfd(int pidfd, int number);
Result<void> pidfd_send_signal(int pidfd, int signal);

}  // namespace godwit::kernel
