#include "kernel/userfaultfd.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

namespace godwit::kernel {

namespace {

/// UFFDIO_COPY and UFFDIO_ZEROPAGE report in a signed field what was done before they failed. What is not a failure of
/// ours ends the call early: a page that is already there, or a fork, mremap or munmap of the target in between. The
/// two must not be confused: after the latter nothing is in place.
Result<std::uint64_t> filled(int outcome, std::int64_t done, const char* what, RemoteAddress to, std::uint64_t size) {
  if (outcome == 0) return static_cast<std::uint64_t>(done);
  const int code = errno;
  if ((code == EEXIST || code == EAGAIN) && done > 0) return static_cast<std::uint64_t>(done);
  if (code == EEXIST) return 0;
  if (code == EAGAIN) return fail(ErrorKind::busy, "the layout is changing at {:#x}", to);
  return fail_errno("{} {} bytes at {:#x} through a userfaultfd", what, size, to);
}

}  // namespace

Result<Userfaultfd> Userfaultfd::handshake(Fd fd, std::uint64_t features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(fd.get(), UFFDIO_API, &api) < 0) return fail_errno("open a userfaultfd for features {:#x}", features);
  Userfaultfd result;
  result.fd_ = std::move(fd);
  return result;
}

Result<void> Userfaultfd::register_range(RemoteAddress begin, std::uint64_t size, std::uint64_t mode) {
  uffdio_register range{};
  range.range = {begin, size};
  range.mode = mode;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &range) < 0)
    return fail_errno("register {:#x}-{:#x} with a userfaultfd", begin, begin + size);
  return {};
}

Result<void> Userfaultfd::unregister_range(RemoteAddress begin, std::uint64_t size) {
  uffdio_range range{begin, size};
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range) < 0)
    return fail_errno("unregister {:#x}-{:#x} from a userfaultfd", begin, begin + size);
  return {};
}

Result<std::uint64_t> Userfaultfd::copy(RemoteAddress to, const void* from, std::uint64_t size, bool wake) {
  uffdio_copy order{};
  order.dst = to;
  order.src = reinterpret_cast<std::uint64_t>(from);
  order.len = size;
  order.mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE;
  const int outcome = ::ioctl(fd_.get(), UFFDIO_COPY, &order);
  return filled(outcome, order.copy, "copy", to, size);
}

Result<std::uint64_t> Userfaultfd::zero(RemoteAddress to, std::uint64_t size, bool wake) {
  uffdio_zeropage order{};
  order.range = {to, size};
  order.mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
  const int outcome = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &order);
  return filled(outcome, order.zeropage, "zero", to, size);
}

Result<void> Userfaultfd::wake(RemoteAddress begin, std::uint64_t size) {
  uffdio_range range{begin, size};
  if (::ioctl(fd_.get(), UFFDIO_WAKE, &range) < 0)
    return fail_errno("wake {:#x}-{:#x} through a userfaultfd", begin, begin + size);
  return {};
}

Result<bool> Userfaultfd::read(uffd_msg& message) {
  const ssize_t got = ::read(fd_.get(), &message, sizeof message);
  if (got == static_cast<ssize_t>(sizeof message)) return true;
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (got < 0) return fail_errno("read a userfaultfd");
  return fail(ErrorKind::failed, "read a userfaultfd: {} bytes instead of {}", got, sizeof message);
}

}  // namespace godwit::kernel
