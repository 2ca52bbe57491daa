#include "kernel/pidfd.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit::kernel {

namespace {
constexpr unsigned pidfd_thread = O_EXCL;  // PIDFD_THREAD, linux/pidfd.h since 6.9
}

Result<Fd> pidfd_open(HostPid pid, bool thread) {
  const long fd = ::syscall(SYS_pidfd_open, pid.value, thread ? pidfd_thread : 0U);
  if (fd < 0) return fail_errno("open a pidfd of {}", pid.value);
  return Fd(static_cast<int>(fd));
}

Result<Fd> pidfd_getfd(int pidfd, int number) {
  const long fd = ::syscall(SYS_pidfd_getfd, pidfd, number, 0U);
  if (fd < 0) return fail_errno("duplicate descriptor {} of another process", number);
  return Fd(static_cast<int>(fd));
}

Result<void> pidfd_send_signal(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0U) < 0)
    return fail_errno("send signal {} by pidfd", signal);
  return {};
}

}  // namespace godwit::kernel
