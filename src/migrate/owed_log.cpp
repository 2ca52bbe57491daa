#include "migrate/owed_log.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace godwit::migrate {
namespace {

constexpr std::uint64_t size_limit = 1 * GiB;

}  // namespace

Result<OwedLog> OwedLog::make() {
  Fd file(::memfd_create("godwit-owed", MFD_CLOEXEC));
  if (!file) return fail_errno("make a log of owed pages");
  return OwedLog(std::move(file), 0);
}

Result<OwedLog> OwedLog::take(Fd file) {
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return fail_errno("look at the log of owed pages");
  const auto size = static_cast<std::uint64_t>(facts.st_size);
  return OwedLog(std::move(file), size - size % sizeof(Entry));
}

Result<void> OwedLog::add(const Entry& entry) {
  return add({&entry, 1});
}

Result<void> OwedLog::add(std::span<const Entry> entries) {
  if (size_ + entries.size_bytes() > size_limit) return fail(ErrorKind::failed, "the log of owed pages is full");
  const ssize_t wrote = ::pwrite(file_.get(), entries.data(), entries.size_bytes(), static_cast<off_t>(size_));
  if (wrote != static_cast<ssize_t>(entries.size_bytes())) return fail_errno("write down what is owed");
  size_ += entries.size_bytes();
  return {};
}

Result<std::vector<OwedLog::Entry>> OwedLog::read() const {
  if (size_ > size_limit) return fail(ErrorKind::invalid, "the log of owed pages is over the limit");
  std::vector<Entry> entries(size_ / sizeof(Entry));
  const ssize_t got = ::pread(file_.get(), entries.data(), size_, 0);
  if (got != static_cast<ssize_t>(size_)) return fail_errno("read what is owed");
  for (const auto& entry : entries)
    if (entry.kind < Entry::made || entry.kind > Entry::forked || entry.space >= entries.size())
      return fail(ErrorKind::invalid, "no log of owed pages");
  return entries;
}

}  // namespace godwit::migrate
