#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

namespace godwit::kernel {

/// A userfaultfd of another process, held by us (made there, pulled out by pidfd_getfd).
class Userfaultfd {
 public:
  /// Handshake (UFFDIO_API) with these UFFD_FEATURE_* on a descriptor just made.
  static Result<Userfaultfd> handshake(Fd fd, std::uint64_t features);

  /// One that needs no handshake any more: a forked child's, as UFFD_EVENT_FORK brings it.
  static Userfaultfd take(Fd fd) {
    Userfaultfd result;
    result.fd_ = std::move(fd);
    return result;
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// UFFDIO_REGISTER with UFFDIO_REGISTER_MODE_*.
  Result<void> register_range(RemoteAddress begin, std::uint64_t size, std::uint64_t mode);
  Result<void> unregister_range(RemoteAddress begin, std::uint64_t size);
  /// UFFDIO_COPY. Returns how many bytes were copied: fewer than asked when a page was already there (0: the first one
  /// is) or the layout is changing. `busy` when it was changing from the beginning: nothing is in place, an event waits
  /// to be read or the target has not yet gone on after one. Other failures are errors; ESRCH (the process is gone) is
  /// `gone`.
  Result<std::uint64_t> copy(RemoteAddress to, const void* from, std::uint64_t size, bool wake);
  Result<std::uint64_t> zero(RemoteAddress to, std::uint64_t size, bool wake);
  Result<void> wake(RemoteAddress begin, std::uint64_t size);
  /// Next event, without blocking. False when there is none.
  Result<bool> read(uffd_msg& message);
  [[nodiscard]] Fd release() { return std::move(fd_); }

 private:
  Fd fd_;
};

}  // namespace godwit::kernel
