#pragma once

#include <map>
#include <memory>
#include <vector>

#include "base/result.hpp"
#include "base/stream.hpp"
#include "kernel/userfaultfd.hpp"
#include "migrate/page_set.hpp"
#include "migrate/page_stream.hpp"

namespace godwit::migrate {

/// Post-copy at the destination: serves page faults from the source while the rest is pushed in the background. What is
/// owed is known by page; the set of owed pages alone decides whether a page that comes in is put in place, so a page
/// is never put over what the program has done meanwhile.
class Pager {
 public:
  /// `reference`: connection on which pages are asked for.
  explicit Pager(Stream reference);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// UFFD_FEATURE_* that a userfaultfd must have been made with.
  static constexpr std::uint64_t features =
      UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

  /// Before `begin`: one address space and what it is owed.
  void add(SpaceId space, kernel::Userfaultfd fault, PageSet owed);
  /// Starts serving faults.
  Result<void> begin();
  /// Pages that were pushed. Any thread. Pages that are not owed (any more) are left alone.
  Result<void> put(SpaceId space, std::uint64_t address, const void* data, std::size_t size);
  [[nodiscard]] std::uint64_t owed_pages();
  /// All is in place: no more faults are served, the address spaces are let go.
  Result<void> end();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::migrate
