#include "objects/locks.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <charconv>
#include <sstream>

#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

// A description with more locks than this isn't captured: each costs a system call in the freeze.
constexpr std::size_t most_locks = 65536;

/// "1: POSIX  ADVISORY  WRITE 1234 fd:01:567 0 EOF" (lock_get_status in fs/locks.c)
Result<FileLock> parse(const std::string& line, const Descriptor& descriptor) {
  std::istringstream words(line);
  std::string number, kind, mode, type, process, inode, start, end;
  if (!(words >> number >> kind >> mode >> type >> process >> inode >> start >> end))
    return fail(ErrorKind::refused, "{}: a lock of unknown form: {}", descriptor.link, line);
  FileLock lock{.exclusive = type == "WRITE"};
  if (kind == "POSIX")
    lock.kind = "posix";
  else if (kind == "OFDLCK")
    lock.kind = "ofd";
  else if (kind == "FLOCK")
    lock.kind = "flock";
  else
    return fail(ErrorKind::refused, "{}: a {}", descriptor.link, kind == "LEASE" ? "lease" : kind);
  std::uint64_t last = 0;
  std::from_chars(start.data(), start.data() + start.size(), lock.start);
  if (end != "EOF") {
    std::from_chars(end.data(), end.data() + end.size(), last);
    lock.length = last - lock.start + 1;
  }
  return lock;
}

struct flock as_flock(const FileLock& lock) {
  struct flock request {};
  request.l_type = lock.exclusive ? F_WRLCK : F_RDLCK;
  request.l_whence = SEEK_SET;
  request.l_start = static_cast<off_t>(lock.start);
  request.l_len = static_cast<off_t>(lock.length);
  return request;
}

}  // namespace

Result<std::vector<FileLock>> capture_locks(const Descriptor& descriptor, Source& source) {
  std::vector<FileLock> locks;
  bool first = true;
  // The kernel shows a process's own locks in that process's fdinfo only, and those of the description in everyone's.
  for (const auto& holder : descriptor.holders) {
    const auto process = source.host_pid(holder.process);
    if (!process) return fail(ErrorKind::gone, "process {} of the pod", holder.process.value);
    const std::string info = TRY(kernel::read_file(*process, fmt::format("fdinfo/{}", holder.number)));
    for (std::size_t at = info.find("lock:\t"); at != std::string::npos; at = info.find("lock:\t", at + 1)) {
      const std::size_t begin = at + 6;
      auto lock = TRY(parse(info.substr(begin, info.find('\n', begin) - begin), descriptor));
      const bool own = lock.kind == "posix";
      if (own) lock.holder = holder;
      // One process may hold the description under several numbers.
      const bool seen = std::any_of(locks.begin(), locks.end(), [&](const FileLock& other) {
        return other.kind == "posix" && own && other.holder.process == holder.process && other.start == lock.start &&
               other.length == lock.length;
      });
      if (own ? !seen : first) locks.push_back(std::move(lock));
      if (locks.size() > most_locks) return fail(ErrorKind::refused, "{}: too many locks", descriptor.link);
    }
    first = false;
  }
  return locks;
}

Result<void> take_locks(const std::vector<FileLock>& locks, int fd) {
  for (const auto& lock : locks) {
    if (lock.kind == "flock") {
      if (::flock(fd, (lock.exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0) return fail_errno("flock");
    } else if (lock.kind == "ofd") {
      auto request = as_flock(lock);
      if (::fcntl(fd, F_OFD_SETLK, &request) < 0)
        return fail_errno("lock {} bytes at {} (OFD)", lock.length, lock.start);
    }
  }
  return {};
}

void take_process_locks(const std::vector<FileLock>& locks, const Holder& holder, kernel::Batch& batch) {
  for (const auto& lock : locks)
    if (lock.kind == "posix" && lock.holder.process == holder.process && lock.holder.number == holder.number)
      batch.must(fmt::format("lock {} bytes at {} of descriptor {}", lock.length, lock.start, holder.number), SYS_fcntl,
                 {static_cast<std::uint64_t>(holder.number), F_SETLK, batch.value(as_flock(lock))});
}

}  // namespace godwit::objects
