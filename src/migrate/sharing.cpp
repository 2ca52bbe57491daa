#include "migrate/sharing.hpp"

#include <algorithm>

namespace godwit::migrate {

namespace {

/// So many entries are read at once: 128 KiB of them.
constexpr std::uint64_t most_at_once = 16 * 1024;
/// A sample is so many runs of so many pages.
constexpr std::uint64_t most_clusters = 32, most_in_cluster = 8;

bool advised(const Area& area, std::string_view flag) {
  return area.flags.find(flag) != std::string::npos;
}

}  // namespace

Layout layout_after_fork(const Layout& parent) {
  Layout left;
  std::ranges::copy_if(parent, std::back_inserter(left), [](const Area& area) { return !advised(area, "dc"); });
  return left;
}

PageSet pages_after_fork(const PageSet& pages, const Layout& parent, const Layout& child) {
  PageSet kept;
  const Layout begun = layout_after_fork(parent);
  for (const auto& area : begun) {
    if (advised(area, "wf")) continue;
    for (const auto& run : pages.runs({area.begin, area.end})) kept.add(run);
  }
  for (const auto& change : difference(begun, child))
    if (change.kind == Change::Kind::unmap) kept.remove({change.area.begin, change.area.end});
  return kept;
}

PageSet in_both(const PageSet& a, const PageSet& b) {
  PageSet found;
  for (const auto& run : a.all())
    for (const auto& both : b.runs(run)) found.add(both);
  return found;
}

std::vector<Piece> without(std::span<const Piece> pieces, const PageSet& pages) {
  std::vector<Piece> left;
  for (const auto& piece : pieces)
    for (const auto& run : pages.runs(piece.range, false)) left.push_back({piece.space, run});
  return left;
}

Result<PageSet> same_frames(const kernel::Pagemap& one, const kernel::Pagemap& other, const std::vector<Range>& where) {
  PageSet found;
  for (const auto& range : where) {
    for (std::uint64_t at = range.begin; at < range.end;) {
      const std::uint64_t until = std::min(range.end, at + most_at_once * page_size);
      // Read again after the other's: a frame that one has before and after, it has had in between.
      const auto before = TRY(one.entries(at, until));
      const auto others = TRY(other.entries(at, until));
      const auto after = TRY(one.entries(at, until));
      std::size_t begin = 0;
      const auto same = [&](std::size_t i) {
        return same_frame(before[i], others[i]) && same_frame(before[i], after[i]);
      };
      for (std::size_t i = 0; i <= before.size(); ++i) {
        if (i < before.size() && same(i)) continue;
        if (begin < i) found.add({at + begin * page_size, at + i * page_size});
        begin = i + 1;
      }
      at = until;
    }
  }
  return found;
}

Result<std::uint64_t> about_shared(const kernel::Pagemap& one, const kernel::Pagemap& other,
                                   const std::vector<Range>& where) {
  std::uint64_t pages = 0, sampled = 0, same = 0;
  for (const auto& range : where) pages += range.size() / page_size;
  const std::uint64_t step = std::max<std::uint64_t>(1, pages / most_clusters);
  const std::uint64_t length = std::min(step, most_in_cluster);
  std::uint64_t passed = 0, next = 0;  // in pages of `where`
  for (const auto& range : where) {
    const std::uint64_t count = range.size() / page_size;
    for (; next < passed + count; next += step) {
      const std::uint64_t begin = range.begin + (next - passed) * page_size;
      const std::uint64_t end = std::min(range.end, begin + length * page_size);
      const auto ours = TRY(one.entries(begin, end));
      const auto others = TRY(other.entries(begin, end));
      for (std::size_t i = 0; i < ours.size(); ++i) same += same_frame(ours[i], others[i]) ? 1 : 0;
      sampled += ours.size();
    }
    passed += count;
  }
  return sampled == 0 ? 0 : same * pages / sampled;
}

}  // namespace godwit::migrate
