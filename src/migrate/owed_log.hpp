#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "migrate/page_set.hpp"
#include "migrate/page_stream.hpp"

namespace godwit::migrate {

/// What a pod is owed by its source, written down as it changes, so that the next daemon can go on where this one has
/// died: in a memfd that the pod's init holds too, as it lives and dies with the pod's memory. Only grows.
///
/// That a page has come is not written: the kernel knows it, and never puts a page over one that is there. What the
/// program has given up is: it must not come back.
class OwedLog {
 public:
  struct Entry {
    enum Kind : std::uint32_t {
      made = 1,     ///< address space `space` is owed pages of the source's space `a`
      owed = 2,     ///< it is owed the range [a, b)
      removed = 3,  ///< the program has unmapped or dropped [a, b)
      moved = 4,    ///< it has moved [a, b) to c (mremap)
      forked = 5,   ///< `a` is a new address space, its child, and owed what it is
    };
    std::uint32_t kind = 0;
    std::uint32_t space = 0;
    std::uint64_t a = 0, b = 0, c = 0;
  };

  static Result<OwedLog> make();
  /// One that an earlier daemon has left; goes on being written.
  static Result<OwedLog> take(Fd);

  Result<void> add(const Entry&);
  Result<void> add(std::span<const Entry>);
  /// All that is written. An entry that was cut off by the writer's death is left out. `invalid` when it isn't such a
  /// log, or is larger than a program could make it.
  [[nodiscard]] Result<std::vector<Entry>> read() const;
  [[nodiscard]] int fd() const { return file_.get(); }

 private:
  explicit OwedLog(Fd file, std::uint64_t size) : file_(std::move(file)), size_(size) {}
  Fd file_;
  std::uint64_t size_ = 0;
};

}  // namespace godwit::migrate
