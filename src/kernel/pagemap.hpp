#pragma once

#include <cstdint>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::kernel {

/// Categories of PAGEMAP_SCAN (linux/fs.h, since 6.7; the headers of Debian 12 don't have them).
namespace page {
inline constexpr std::uint64_t write_protectable = 1;
inline constexpr std::uint64_t written = 2;
inline constexpr std::uint64_t file = 4;
inline constexpr std::uint64_t present = 8;
inline constexpr std::uint64_t swapped = 16;
inline constexpr std::uint64_t zero_frame = 32;
inline constexpr std::uint64_t huge = 64;
}  // namespace page

struct PageRange {
  RemoteAddress begin = 0;
  RemoteAddress end = 0;
  std::uint64_t categories = 0;
  [[nodiscard]] std::uint64_t size() const { return end - begin; }
};

/// What to look for: a page matches when ((its categories ^ inverted) & mask) == mask and, if any_of is not 0, shares a
/// bit with it.
struct PageQuery {
  std::uint64_t mask = 0;
  std::uint64_t inverted = 0;
  std::uint64_t any_of = 0;
  std::uint64_t returned = 0;  ///< categories by which ranges are told apart
  bool write_protect = false;  ///< re-arm what matched
  bool check = false;          ///< EPERM when a VMA is not registered for asynchronous write-protection
};

/// /proc/PID/pagemap of one process.
class Pagemap {
 public:
  static Result<Pagemap> open(HostPid);
  /// Ranges that match in [begin, end), appended to `found`. Repeats until the whole range is walked.
  Result<void> scan(RemoteAddress begin, RemoteAddress end, const PageQuery&, std::vector<PageRange>& found) const;
  /// False when the address space that this was opened for is no process's any more: it has ended, or executed another
  /// program.
  [[nodiscard]] bool alive() const;
  /// Raw 64-bit pagemap entries (page frame numbers need CAP_SYS_ADMIN), one per page.
  Result<std::vector<std::uint64_t>> entries(RemoteAddress begin, RemoteAddress end) const;

 private:
  Fd fd_;
};

/// Bits of a raw pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
inline constexpr std::uint64_t pagemap_present = 1ULL << 63;
inline constexpr std::uint64_t pagemap_swapped = 1ULL << 62;
inline constexpr std::uint64_t pagemap_file = 1ULL << 61;       ///< of a file, or shared
inline constexpr std::uint64_t pagemap_exclusive = 1ULL << 56;  ///< nobody else maps it
inline constexpr std::uint64_t pagemap_frame = (1ULL << 55) - 1;

}  // namespace godwit::kernel
