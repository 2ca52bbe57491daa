#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "kernel/pagemap.hpp"
#include "migrate/layout.hpp"
#include "migrate/page_set.hpp"
#include "migrate/page_stream.hpp"

/// Pages that two processes share copy-on-write. They stay shared when the second is forked from the first at the
/// destination, too, after the first's pages have arrived there; what differs is sent. What is shared is seen by the
/// frames of memory behind the pages, never guessed from who is whose child.
namespace godwit::migrate {

/// What a process forked from one with this layout begins with.
[[nodiscard]] Layout layout_after_fork(const Layout& parent);

/// Of these pages of the parent, those that a process forked from it has when its layout has become `child`.
[[nodiscard]] PageSet pages_after_fork(const PageSet& pages, const Layout& parent, const Layout& child);

[[nodiscard]] PageSet in_both(const PageSet& a, const PageSet& b);

/// The pieces (all of one space) without these pages.
[[nodiscard]] std::vector<Piece> without(std::span<const Piece> pieces, const PageSet& pages);

/// Whether these raw pagemap entries say that one and the same frame stands behind two private pages.
[[nodiscard]] constexpr bool same_frame(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t compared = kernel::pagemap_present | kernel::pagemap_file | kernel::pagemap_frame;
  return (a & kernel::pagemap_present) != 0 && (a & kernel::pagemap_file) == 0 && (a & kernel::pagemap_frame) != 0 &&
         (a & compared) == (b & compared);
}

/// Of `where`, the pages that have one frame in both address spaces. Both may run: a page is found only if, at one
/// moment within the call, both had it.
Result<PageSet> same_frames(const kernel::Pagemap& one, const kernel::Pagemap& other, const std::vector<Range>& where);

/// About how many of these pages have the same frames in both address spaces: a sample, taken in microseconds.
Result<std::uint64_t> about_shared(const kernel::Pagemap& one, const kernel::Pagemap& other,
                                   const std::vector<Range>& where);

}  // namespace godwit::migrate
