#include "kernel/pagemap.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <span>

#include "kernel/procfs.hpp"

namespace godwit::kernel {

namespace {

/// struct page_region of linux/fs.h.
struct Region {
  std::uint64_t start, end, categories;
};

/// struct pm_scan_arg of linux/fs.h.
struct Scan {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t inverted, mask, any_of, returned;
};
static_assert(sizeof(Scan) == 12 * 8);

constexpr unsigned long pagemap_scan = _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof(Scan));
constexpr std::uint64_t flag_write_protect = 1;
constexpr std::uint64_t flag_check = 2;
constexpr std::size_t regions_at_once = 4096;
constexpr std::uint64_t most_entries = 64 * 1024 * 1024;

}  // namespace

Result<Pagemap> Pagemap::open(HostPid pid) {
  Pagemap pagemap;
  pagemap.fd_ = TRY(open_file(pid, "pagemap", O_RDONLY));
  return pagemap;
}

Result<void> Pagemap::scan(RemoteAddress begin, RemoteAddress end, const PageQuery& query,
                           std::vector<PageRange>& found) const {
  thread_local std::vector<Region> regions(regions_at_once);
  const std::size_t found_before = found.size();
  Scan scan{};
  scan.size = sizeof scan;
  scan.flags = (query.write_protect ? flag_write_protect : 0) | (query.check ? flag_check : 0);
  scan.end = end;
  scan.vec = reinterpret_cast<std::uint64_t>(regions.data());
  scan.vec_len = regions.size();
  scan.inverted = query.inverted;
  scan.mask = query.mask;
  scan.any_of = query.any_of;
  scan.returned = query.returned;
  scan.start = begin;
  while (scan.start < end) {
    const long count = ::ioctl(fd_.get(), pagemap_scan, &scan);
    if (count < 0) return fail_errno("scan the pages of {:#x}-{:#x}", scan.start, end);
    const std::span<const Region> news(regions.data(), static_cast<std::size_t>(count));
    for (const Region& region : news) {
      // A range that was cut because the array was full is joined again.
      if (found.size() > found_before && found.back().end == region.start &&
          found.back().categories == region.categories)
        found.back().end = region.end;
      else
        found.push_back({region.start, region.end, region.categories});
    }
    // Only a full array ends a walk early. walk_end can't tell: after a walk that came to its end it may still say
    // where the kernel's own buffer was full last (seen on 6.18), and pages from there on would be found twice.
    if (news.size() < regions.size()) break;
    scan.start = std::max(scan.walk_end, news.back().end);
  }
  return {};
}

bool Pagemap::alive() const {
  std::uint64_t entry = 0;
  return ::pread(fd_.get(), &entry, sizeof entry, 0) == sizeof entry;
}

Result<std::vector<std::uint64_t>> Pagemap::entries(RemoteAddress begin, RemoteAddress end) const {
  const std::uint64_t first = begin / page_size;
  const std::uint64_t count = (end - begin + page_size - 1) / page_size;
  if (end < begin || count > most_entries)
    return fail(ErrorKind::invalid, "pagemap entries of {:#x}-{:#x}: more than {} at once", begin, end, most_entries);
  std::vector<std::uint64_t> entries(count);
  std::uint64_t done = 0;
  while (done < count) {
    const ssize_t got = ::pread(fd_.get(), entries.data() + done, (count - done) * sizeof(std::uint64_t),
                                static_cast<off_t>((first + done) * sizeof(std::uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read pagemap entries of {:#x}-{:#x}", begin, end);
    if (got == 0) return fail(ErrorKind::gone, "read pagemap entries: the process has ended");
    done += static_cast<std::uint64_t>(got) / sizeof(std::uint64_t);
  }
  return entries;
}

}  // namespace godwit::kernel
