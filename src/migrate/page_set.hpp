#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.hpp"

namespace godwit::migrate {

/// A half-open range of page-aligned addresses.
struct Range {
  std::uint64_t begin = 0, end = 0;
  [[nodiscard]] std::uint64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

/// A set of pages of one address space: a bit a page, in blocks of 2 MiB, so that dense sets cost 32 KiB per GiB and
/// sparse ones nothing.
class PageSet {
 public:
  void add(Range range) { change(range, true); }
  void remove(Range range) { change(range, false); }
  void clear() { blocks_.clear(); }
  [[nodiscard]] bool contains(std::uint64_t address) const {
    const auto block = blocks_.find(address / block_size);
    if (block == blocks_.end()) return false;
    const auto page = address % block_size / page_size;
    return (block->second[page / 64] >> (page % 64) & 1) != 0;
  }
  /// Stretches of `range` that are in the set (or, with `members` false, that are not), in order.
  [[nodiscard]] std::vector<Range> runs(Range range, bool members = true) const;
  [[nodiscard]] std::uint64_t pages() const;
  /// Some stretch of the set; none when it is empty. Within one block.
  [[nodiscard]] std::optional<Range> first() const;
  /// All of the set, in order.
  [[nodiscard]] std::vector<Range> all() const;

 private:
  static constexpr std::uint64_t block_size = 512 * page_size;
  using Block = std::array<std::uint64_t, 8>;
  void change(Range range, bool value);
  std::unordered_map<std::uint64_t, Block> blocks_;  ///< none is empty
};

}  // namespace godwit::migrate
