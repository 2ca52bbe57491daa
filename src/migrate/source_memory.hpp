#pragma once

#include <sys/stat.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/memory.hpp"
#include "kernel/pagemap.hpp"
#include "kernel/remote.hpp"
#include "kernel/userfaultfd.hpp"
#include "migrate/layout.hpp"
#include "migrate/page_stream.hpp"

/// The memory of a pod that is leaving: what is mapped, what has been sent, what got dirty since.
namespace godwit::migrate {

/// The shared memory objects of the pod, by key. Each travels once, however many processes map it.
class SourceObjects {
 public:
  struct Object {
    ObjectInfo info;
    SpaceId space = 0;
    Fd file;             ///< read-only, from /proc/PID/map_files
    timespec changed{};  ///< ctime when it was last sent whole: write(2) isn't seen by write-protection, but moves it
    std::uint64_t mappings = 0, mappings_before = 0;
    bool sent = false;
    PageSet dirty;  ///< offsets, since the last collection
  };

  /// Begins a look at all processes' layouts.
  void begin_look();
  /// A process maps the object here (which opens it at first sight).
  Result<void> seen(HostPid, const Area&, const std::vector<ObjectInfo>&);
  void mark_dirty(std::uint64_t key, Range offsets);
  /// What has to be sent now: all of what is new or was written behind our back, dirty pages otherwise. Clears the
  /// dirty sets.
  Result<void> collect(std::vector<Piece>& pieces);
  /// These were collected but not sent after all: the next collection has them again.
  void postpone(const Piece&);
  /// Some of its writes may have been taken for another's: the next collection has all of it.
  void distrust(std::uint64_t key);
  /// Pages dirty and not collected yet.
  [[nodiscard]] std::uint64_t dirty_pages() const;
  [[nodiscard]] std::size_t read(SpaceId, std::span<const Range> offsets, std::uint8_t* to) const;
  [[nodiscard]] std::vector<ObjectInfo> infos() const;
  [[nodiscard]] bool empty() const { return objects_.empty(); }

 private:
  static Result<bool> is_mapped_object(const Object&, const Area&, const struct stat&);
  std::map<std::uint64_t, Object> objects_;
  SpaceId next_space_ = 0;
};

/// One process's address space at the source.
class SourceMemory {
 public:
  static Result<SourceMemory> open(HostPid, PodPid);

  [[nodiscard]] HostPid process() const { return process_; }
  [[nodiscard]] SpaceId space() const { return static_cast<SpaceId>(pod_.value); }
  [[nodiscard]] const Layout& layout() const { return layout_; }
  /// Whether anything was mapped there at the last look.
  [[nodiscard]] bool maps(RemoteAddress address) const;
  /// Whether the layout is the one that this was asked for last.
  [[nodiscard]] bool told() { return std::exchange(told_, true); }
  [[nodiscard]] bool tracked() const { return tracker_.has_value(); }

  /// False when the process has executed another program since `open`: nothing that is known about its memory holds.
  [[nodiscard]] bool alive() const { return pagemap_->alive(); }

  /// Starts asynchronous write-protection with a userfaultfd that was made inside the process. From here on `collect`
  /// knows what was written.
  void track(kernel::Userfaultfd tracker);
  /// Stops tracking; the process pays nothing any more.
  void untrack() { tracker_.reset(); }

  /// Reads the mappings. `with_advice` also reads their flags (smaps: slow, only while the process runs); otherwise
  /// flags are carried over from before, if there is a before. What was unmapped counts as not sent any more; what is
  /// new is registered.
  Result<void> look(SourceObjects&, bool with_advice, RemoteAddress leave_out_begin, RemoteAddress leave_out_end);
  /// Private pages to send: present, and written since they were sent or never sent. Counts them as sent, and re-arms.
  /// Dirty pages of shared objects are noted there.
  Result<void> collect(SourceObjects&, std::vector<Piece>& pieces);
  /// The same, but of these pages only.
  Result<void> collect_only(const PageSet& pages, SourceObjects&, std::vector<Piece>& pieces);
  /// All with every thread stopped, without re-arming; `absent` gets what was sent and is no longer there. Nothing when
  /// it is called once more.
  /// `unseen`, if any, gets what was dense and is private memory that needn't be looked through: it may all be owed.
  Result<void> collect_last(SourceObjects&, std::vector<Piece>& pieces, std::vector<Range>& absent,
                            std::vector<Range>* unseen = nullptr);
  /// While the program runs: which areas are in memory for the most part.
  Result<void> note_dense();
  /// What is there of a range.
  Result<void> present(Range, std::vector<Piece>& pieces) const;
  /// How often pages of it were collected, by whichever of these three.
  [[nodiscard]] std::uint32_t collections() const { return collections_; }
  /// The destination forks it from `base`: whatever is there of `base` is there of it too, right or not. Returns where.
  PageSet begin_from(const SourceMemory& base);
  /// Pages that the destination has exactly as they are here, once it has all that was collected: sent, and not written
  /// since, as far as that is known.
  Result<PageSet> settled() const;
  /// Private pages that are the process's own: all in memory, but those of a file that it hasn't written.
  Result<std::vector<Range>> own_ranges() const;
  [[nodiscard]] const kernel::Pagemap& pagemap() const { return *pagemap_; }
  /// How many pages `collect` would give now. Nothing is re-armed.
  Result<std::uint64_t> dirty_pages();
  /// Pages in memory (or swapped out) that will have to travel.
  Result<std::uint64_t> resident_pages();
  /// Copies from the process; what can't be read normally (PROT_NONE) is read as a debugger would. Returns how many
  /// bytes of the beginning were read.
  [[nodiscard]] std::size_t read(std::span<const Range>, std::uint8_t* to) const;
  /// Whether another process may have some of its pages, copy-on-write: reading must leave them shared.
  void may_share(bool may) { may_share_ = may; }
  /// These were collected but not sent after all: the next collection has them again, written or not.
  void postpone(Range range) {
    sent_.remove(range);
    postponed_.add(range);
    lost_.add(range);
  }

 private:
  SourceMemory() = default;
  struct Reading {
    std::vector<kernel::Mapping> mappings;
    std::string text;  ///< of /proc/PID/maps
    Layout layout;
    std::vector<ObjectInfo> objects;
  };
  [[nodiscard]] bool own_alone(std::span<const Range>) const;
  void take_postponed(std::vector<Piece>& pieces);
  void register_all();
  /// Nothing: all is as it was at the last look.
  Result<std::optional<Reading>> read_layout(bool with_advice, RemoteAddress leave_out_begin,
                                             RemoteAddress leave_out_end) const;
  Result<void> scan(const Area&, bool all, SourceObjects&, std::vector<Piece>& pieces);
  /// Ranges with written pages, present or not, of all areas. Nothing is re-armed.
  Result<std::vector<kernel::PageRange>> written_ranges() const;
  /// What is there of a written range travels; what was sent and is no longer there is absent.
  void note_written(Range, std::span<const kernel::PageRange> there, std::vector<Piece>&, std::vector<Range>& absent);

  HostPid process_;
  PodPid pod_;
  std::optional<kernel::Pagemap> pagemap_;
  std::optional<kernel::MemoryFile> file_;
  std::optional<kernel::Userfaultfd> tracker_;
  std::vector<kernel::Mapping> mappings_;
  std::string text_;  ///< of /proc/PID/maps at the last look
  Layout layout_;
  Range left_out_;  ///< ours, not the program's
  bool told_ = false;
  std::vector<Range> refusing_;  ///< mappings that the tracker can't be registered with
  PageSet sent_;
  PageSet lost_;  ///< the destination may have something there that was never sent, or means nothing any more
  PageSet postponed_;
  std::vector<Range> dense_;
  bool may_share_ = false;
  std::uint32_t collections_ = 0;
  bool last_ = false;  ///< the last collection has been
};

}  // namespace godwit::migrate
