#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "base/stream.hpp"
#include "kernel/userfaultfd.hpp"
#include "migrate/page_set.hpp"
#include "migrate/page_stream.hpp"
#include "pod/pod.hpp"

namespace godwit::migrate {

/// Post-copy at the destination: serves page faults from the source while the rest is pushed in the background. What is
/// owed is known by page; the set of owed pages alone decides whether a page that comes in is put in place, so a page
/// is never put over what the program has done meanwhile.
///
/// The pod's init holds the userfaultfds and the log of what is owed as well: when the daemon dies, faults wait, and
/// the next daemon goes on with `adopt`. A pod with a forked child that the init has no room for is killed. A daemon
/// that dies in the microseconds between reading what the program does with its layout (fork, mremap, munmap, madvise)
/// and writing it down loses that.
///
/// A connection that breaks stops nothing for good: faults wait until there is another one.
class Pager {
 public:
  /// `reference`: connection on which pages are asked for; may be none yet.
  static Result<std::unique_ptr<Pager>> make(pod::Pod&, Stream reference);
  /// What an earlier daemon has left with the pod's init; null when nothing was owed. Serves as soon as it is begun,
  /// and has pages from `fetch` on.
  static Result<std::unique_ptr<Pager>> adopt(pod::Pod&);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// UFFD_FEATURE_* that a userfaultfd must have been made with.
  static constexpr std::uint64_t features =
      UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

  /// Before `begin`: one address space and what it is owed.
  Result<void> add(SpaceId space, kernel::Userfaultfd fault, PageSet owed);
  /// Called once, when the source is lost or owes an answer for ten seconds: whoever needs a page waits, for now. True:
  /// the processes have been killed. Whoever else waits, for their memory, is let go with zeros.
  using Starving = std::function<bool(const Error&)>;
  /// Starts serving faults, on a thread of its own, which calls `starving`.
  Result<void> begin(Starving starving = {});
  /// Pages that were pushed. Any thread. Pages that are not owed (any more) are left alone.
  Result<void> put(SpaceId space, std::uint64_t address, const void* data, std::size_t size);
  [[nodiscard]] std::uint64_t owed_pages();

  /// How the source is reached anew.
  struct Source {
    std::function<Result<Stream>()> connect;
    std::chrono::seconds patience;                        ///< it may be out of reach for so long at a stretch
    std::function<bool()> stopped;                        ///< leave off: this daemon ends
    std::function<void(const std::string& why)> waiting;  ///< it can't be reached: shown
  };
  /// Asks for all that is still owed, over connections of its own; faults go over one of them, too. Connections that
  /// break are made anew. `gone` when the source hasn't the pages any more, can't read one, or can't be reached: they
  /// are lost.
  /// `cancelled` when stopped.
  Result<void> fetch(const Source&);
  /// All is in place: no more faults are served, the address spaces are let go, and nothing is left for another daemon.
  /// An error when the pod's init keeps some of it all the same: until the next `adopt` lets it go, a process may wait
  /// for ever in its next fork, mremap or munmap.
  Result<void> end();

 private:
  struct Parts;
  explicit Pager(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::migrate
