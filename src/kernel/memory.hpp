#pragma once

#include <sys/uio.h>

#include <span>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

/// Another process's memory, copied from and to the outside.
namespace godwit::kernel {

/// process_vm_readv of one contiguous range. Short reads return what could be read (0 when the first page can't be).
Result<std::size_t> read_memory(HostPid, RemoteAddress from, void* to, std::size_t size);
/// Several pieces in one call, one behind the other. Returns how many bytes of the beginning were read: it may end
/// early where more could be read.
Result<std::size_t> read_memory(HostPid, std::span<const iovec> from, void* to);
/// process_vm_writev: needs a writable mapping.
Result<std::size_t> write_memory(HostPid, RemoteAddress to, const void* from, std::size_t size);

/// /proc/PID/mem, which also writes where the mapping is read-only (FOLL_FORCE).
class MemoryFile {
 public:
  static Result<MemoryFile> open(HostPid);
  Result<void> read(RemoteAddress from, void* to, std::size_t size) const;
  Result<void> write(RemoteAddress to, const void* from, std::size_t size) const;

 private:
  Fd fd_;
};

}  // namespace godwit::kernel
