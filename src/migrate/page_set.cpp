#include "migrate/page_set.hpp"

#include <algorithm>

namespace godwit::migrate {

void PageSet::change(Range range, bool value) {
  for (std::uint64_t at = range.begin; at < range.end;) {
    const std::uint64_t number = at / block_size;
    const std::uint64_t until = std::min(range.end, (number + 1) * block_size);
    const auto existing = blocks_.find(number);
    if (!value && existing == blocks_.end()) {
      at = until;
      continue;
    }
    if (!value && at % block_size == 0 && until % block_size == 0) {
      blocks_.erase(existing);
      at = until;
      continue;
    }
    Block& block = existing == blocks_.end() ? blocks_[number] : existing->second;
    const std::uint64_t first = at % block_size / page_size;
    const std::uint64_t last = (until - 1) % block_size / page_size;
    for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
      std::uint64_t bits = ~0ULL;
      if (word == first / 64) bits &= ~0ULL << (first % 64);
      if (word == last / 64) bits &= ~0ULL >> (63 - last % 64);
      if (value)
        block[word] |= bits;
      else
        block[word] &= ~bits;
    }
    if (!value && std::ranges::none_of(block, [](std::uint64_t word) { return word != 0; })) blocks_.erase(existing);
    at = until;
  }
}

std::vector<Range> PageSet::runs(Range range, bool members) const {
  std::vector<Range> found;
  const auto add = [&](std::uint64_t begin, std::uint64_t end) {
    if (!found.empty() && found.back().end == begin)
      found.back().end = end;
    else
      found.push_back({begin, end});
  };
  for (std::uint64_t at = range.begin; at < range.end;) {
    const std::uint64_t until = std::min(range.end, (at / block_size + 1) * block_size);
    const auto block = blocks_.find(at / block_size);
    if (block == blocks_.end()) {
      if (!members) add(at, until);
      at = until;
      continue;
    }
    while (at < until) {
      const std::uint64_t page = at % block_size / page_size;
      std::uint64_t word = block->second[page / 64];
      if (!members) word = ~word;
      word >>= page % 64;
      const std::uint64_t in_word = std::min<std::uint64_t>(64 - page % 64, (until - at) / page_size);
      const std::uint64_t length = (word & 1) != 0
                                       ? static_cast<std::uint64_t>(std::countr_one(word))
                                       : static_cast<std::uint64_t>(word == 0 ? 64 : std::countr_zero(word));
      const std::uint64_t pages = std::min(in_word, length);
      if ((word & 1) != 0) add(at, at + pages * page_size);
      at += pages * page_size;
    }
  }
  return found;
}

std::uint64_t PageSet::pages() const {
  std::uint64_t count = 0;
  for (const auto& [number, block] : blocks_)
    for (const auto word : block) count += static_cast<std::uint64_t>(std::popcount(word));
  return count;
}

std::optional<Range> PageSet::first() const {
  if (blocks_.empty()) return {};
  const std::uint64_t begin = blocks_.begin()->first * block_size;
  return runs({begin, begin + block_size}).front();
}

std::vector<Range> PageSet::all() const {
  std::vector<std::uint64_t> numbers;
  numbers.reserve(blocks_.size());
  for (const auto& [number, block] : blocks_) numbers.push_back(number);
  std::ranges::sort(numbers);
  std::vector<Range> found;
  for (const auto number : numbers) {
    for (const auto& run : runs({number * block_size, (number + 1) * block_size})) {
      if (!found.empty() && found.back().end == run.begin)
        found.back().end = run.end;
      else
        found.push_back(run);
    }
  }
  return found;
}

}  // namespace godwit::migrate
