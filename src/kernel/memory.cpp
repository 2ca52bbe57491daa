#include "kernel/memory.hpp"

#include <fcntl.h>
#include <sys/uio.h>

#include "kernel/procfs.hpp"

namespace godwit::kernel {

namespace {

using Transfer = decltype(&::process_vm_readv);

/// One call moves at most MAX_RW_COUNT (2 GiB - 4 KiB), and ends at the first page that can't be reached.
Result<std::size_t> transfer(Transfer call, const char* verb, HostPid pid, RemoteAddress remote, void* local,
                             std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    const iovec here{static_cast<std::uint8_t*>(local) + done, size - done};
    const iovec there{reinterpret_cast<void*>(remote + done), size - done};
    const ssize_t moved = call(pid.value, &here, 1, &there, 1, 0);
    if (moved < 0 && errno == EFAULT) break;
    if (moved < 0) return fail_errno("{} memory of {} at {:#x}", verb, pid.value, remote + done);
    if (moved == 0) break;
    done += static_cast<std::size_t>(moved);
  }
  return done;
}

}  // namespace

Result<std::size_t> read_memory(HostPid pid, RemoteAddress from, void* to, std::size_t size) {
  return transfer(&::process_vm_readv, "read", pid, from, to, size);
}

Result<std::size_t> read_memory(HostPid pid, std::span<const iovec> from, void* to) {
  std::size_t size = 0;
  for (const auto& piece : from) size += piece.iov_len;
  const iovec here{to, size};
  const ssize_t got = ::process_vm_readv(pid.value, &here, 1, from.data(), from.size(), 0);
  if (got < 0 && errno != EFAULT) return fail_errno("read memory of {}", pid.value);
  return got < 0 ? 0 : static_cast<std::size_t>(got);
}

Result<std::size_t> write_memory(HostPid pid, RemoteAddress to, const void* from, std::size_t size) {
  return transfer(&::process_vm_writev, "write", pid, to, const_cast<void*>(from), size);
}

Result<MemoryFile> MemoryFile::open(HostPid pid) {
  MemoryFile file;
  file.fd_ = TRY(open_file(pid, "mem", O_RDWR));
  return file;
}

Result<void> MemoryFile::read(RemoteAddress from, void* to, std::size_t size) const {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got =
        ::pread(fd_.get(), static_cast<std::uint8_t*>(to) + done, size - done, static_cast<off_t>(from + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read {} bytes of memory at {:#x}", size - done, from + done);
    if (got == 0) return fail(ErrorKind::gone, "read memory at {:#x}: its process has ended", from + done);
    done += static_cast<std::size_t>(got);
  }
  return {};
}

Result<void> MemoryFile::write(RemoteAddress to, const void* from, std::size_t size) const {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t put =
        ::pwrite(fd_.get(), static_cast<const std::uint8_t*>(from) + done, size - done, static_cast<off_t>(to + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno("write {} bytes of memory at {:#x}", size - done, to + done);
    if (put == 0) return fail(ErrorKind::gone, "write memory at {:#x}: its process has ended", to + done);
    done += static_cast<std::size_t>(put);
  }
  return {};
}

}  // namespace godwit::kernel
