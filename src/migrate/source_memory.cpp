#include "migrate/source_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "migrate/sharing.hpp"
#include "objects/memory_object.hpp"

namespace godwit::migrate {

namespace page = kernel::page;

namespace {

constexpr std::uint64_t resident = page::present | page::swapped;

/// A private file mapping's own pages are those that were copied on write; the others are the file's.
kernel::PageQuery own_pages(const Area& area, bool written_only) {
  kernel::PageQuery query;
  query.any_of = resident;
  if (written_only) query.mask |= page::written;
  if (area.backing == Backing::file) {
    query.mask |= page::file;
    query.inverted |= page::file;
  }
  return query;
}

/// By this process, through this mapping.
bool never_written(const Area& area) {
  return area.backing == Backing::vdso || (area.backing == Backing::object && !area.writable);
}

bool written_behind(const SourceObjects::Object& object, const struct stat& now) {
  return now.st_ctim.tv_sec != object.changed.tv_sec || now.st_ctim.tv_nsec != object.changed.tv_nsec;
}

bool overlap(const Layout& layout) {
  return std::ranges::adjacent_find(layout, [](const Area& one, const Area& next) { return next.begin < one.end; }) !=
         layout.end();
}

void add_data_ranges(const SourceObjects::Object& object, std::uint64_t size, std::vector<Piece>& pieces) {
  off_t at = 0;
  while (static_cast<std::uint64_t>(at) < size) {
    const off_t data = ::lseek(object.file.get(), at, SEEK_DATA);
    if (data < 0) return;
    off_t hole = ::lseek(object.file.get(), data, SEEK_HOLE);
    if (hole < 0) hole = static_cast<off_t>(size);
    const auto begin = static_cast<std::uint64_t>(data) & ~(page_size - 1);
    const auto end = (static_cast<std::uint64_t>(hole) + page_size - 1) & ~(page_size - 1);
    pieces.push_back({object.space, {begin, end}});
    at = hole;
  }
}

}  // namespace

/// Whether what was opened is what was mapped there when the mappings were read.
Result<bool> SourceObjects::is_mapped_object(const Object& object, const Area& area, const struct stat& status) {
  if (objects::memory_object_key(status.st_dev, status.st_ino) == area.object) return true;
  const auto kind = object.info.kind;
  if (kind == ObjectInfo::Kind::anonymous || kind == ObjectInfo::Kind::memfd) return false;
  // The numbers that an overlay's stat tells are others than those of its mappings. The maps write some names
  // otherwise.
  if (object.info.name.find('\\') != std::string::npos) return true;
  const std::string name = TRY(kernel::read_link(HostPid{::getpid()}, fmt::format("fd/{}", object.file.get())));
  return name.ends_with(object.info.name) || name.ends_with(object.info.name + " (deleted)");
}

void SourceObjects::begin_look() {
  for (auto& [key, object] : objects_) {
    object.mappings_before = object.mappings;
    object.mappings = 0;
  }
}

Result<void> SourceObjects::seen(HostPid process, const Area& area, const std::vector<ObjectInfo>& infos) {
  auto [entry, fresh] = objects_.try_emplace(area.object);
  Object& object = entry->second;
  ++object.mappings;
  object.info.writable = object.info.writable || area.writable;
  if (!fresh && object.file) return {};
  const auto info = std::ranges::find(infos, area.object, &ObjectInfo::key);
  if (info == infos.end()) return fail(ErrorKind::failed, "shared memory at {:#x} has no description", area.begin);
  object.info = *info;
  auto file = kernel::open_file(process, fmt::format("map_files/{:x}-{:x}", area.begin, area.end), O_RDONLY);
  if (!file) {
    // The mapping is gone by now, or another one.
    objects_.erase(entry);
    return std::unexpected(file.error());
  }
  object.file = std::move(*file);
  struct stat status {};
  if (::fstat(object.file.get(), &status) != 0) return fail_errno("stat shared memory {}", object.info.name);
  if (!TRY(is_mapped_object(object, area, status))) {
    // Another one stands there by now, just as large.
    objects_.erase(entry);
    errno = ENOENT;
    return fail_errno("open the shared memory at {:#x}", area.begin);
  }
  object.space = object_space | next_space_++;
  object.info.size = static_cast<std::uint64_t>(status.st_size);
  if (object.info.kind == ObjectInfo::Kind::deleted) {
    object.info.descriptor_key = objects::memory_object_key(status.st_dev, status.st_ino);
    if (status.st_nlink != 0 || !S_ISREG(status.st_mode)) {
      const std::string name = object.info.name;
      objects_.erase(entry);
      return fail(ErrorKind::refused, "the deleted {} is mapped, and {}", name,
                  status.st_nlink != 0 ? "has another name" : "is no file");
    }
  }
  return {};
}

void SourceObjects::mark_dirty(std::uint64_t key, Range offsets) {
  const auto object = objects_.find(key);
  if (object != objects_.end()) object->second.dirty.add(offsets);
}

Result<void> SourceObjects::collect(std::vector<Piece>& pieces) {
  for (auto& [key, object] : objects_) {
    struct stat now {};
    if (::fstat(object.file.get(), &now) != 0) return fail_errno("stat shared memory {}", object.info.name);
    object.info.size = static_cast<std::uint64_t>(now.st_size);
    // A page written through a mapping that is gone by now shows clean in the others.
    // Anonymous memory has no descriptor to be written through. (Its times can't say: a write to a page that was armed
    // sets them, too.)
    const bool writable_elsewhere = object.info.kind != ObjectInfo::Kind::anonymous;
    const bool unseen_writes =
        object.mappings < object.mappings_before || (writable_elsewhere && written_behind(object, now));
    const bool travels_as_file = object.info.kind == ObjectInfo::Kind::file;
    if (!travels_as_file && (!object.sent || unseen_writes)) {
      add_data_ranges(object, object.info.size, pieces);
    } else {
      for (const auto& run : object.dirty.all())
        if (run.begin < object.info.size) pieces.push_back({object.space, run});
    }
    object.changed = now.st_ctim;
    object.sent = true;
    object.dirty.clear();
  }
  return {};
}

void SourceObjects::postpone(const Piece& piece) {
  for (auto& [key, object] : objects_)
    if (object.space == piece.space) object.dirty.add(piece.range);
}

void SourceObjects::distrust(std::uint64_t key) {
  const auto object = objects_.find(key);
  if (object != objects_.end()) object->second.sent = false;
}

std::uint64_t SourceObjects::dirty_pages() const {
  std::uint64_t pages = 0;
  for (const auto& [key, object] : objects_) pages += object.dirty.pages();
  return pages;
}

std::size_t SourceObjects::read(SpaceId space, std::span<const Range> offsets, std::uint8_t* to) const {
  const auto object = std::ranges::find_if(objects_, [&](const auto& entry) { return entry.second.space == space; });
  if (object == objects_.end()) return 0;
  std::size_t done = 0;
  for (const auto& range : offsets) {
    const ssize_t got = ::pread(object->second.file.get(), to + done, range.size(), static_cast<off_t>(range.begin));
    if (got <= 0) return done;
    // The last page of an object may be a part of one.
    const auto end =
        std::min<std::size_t>((static_cast<std::size_t>(got) + page_size - 1) & ~(page_size - 1), range.size());
    std::memset(to + done + got, 0, end - static_cast<std::size_t>(got));
    done += end;
    if (end < range.size()) return done;
  }
  return done;
}

std::vector<ObjectInfo> SourceObjects::infos() const {
  std::vector<std::pair<SpaceId, ObjectInfo>> ordered;
  for (const auto& [key, object] : objects_) ordered.emplace_back(object.space, object.info);
  std::ranges::sort(ordered, {}, &std::pair<SpaceId, ObjectInfo>::first);
  std::vector<ObjectInfo> found;
  for (auto& [space, info] : ordered) found.push_back(std::move(info));
  return found;
}

Result<SourceMemory> SourceMemory::open(HostPid process, PodPid pod) {
  SourceMemory memory;
  memory.process_ = process;
  memory.pod_ = pod;
  memory.pagemap_ = TRY(kernel::Pagemap::open(process));
  memory.file_ = TRY(kernel::MemoryFile::open(process));
  return memory;
}

void SourceMemory::track(kernel::Userfaultfd tracker) {
  tracker_ = std::move(tracker);
  refusing_.clear();
}

/// Everything at once, in stretches that end where nothing of the program can begin or end in between. A range taken
/// from a layout read a moment ago could cut in two what the program has mapped there since, and mremap refuses to work
/// on two mappings.
void SourceMemory::register_all() {
  constexpr std::uint64_t lowest = 0x10000, highest = 0x7ffffffff000;
  std::vector<Range> cuts = refusing_;
  for (const auto& area : layout_) {
    // A shared mapping that could never be written to is refused, and with it all of the stretch.
    const bool never_written = area.backing == Backing::object && (area.protection & PROT_WRITE) == 0;
    if (area.backing != Backing::vdso && !never_written) continue;
    if (never_written && tracker_->register_range(area.begin, area.size(), UFFDIO_REGISTER_MODE_WP)) continue;
    cuts.push_back({area.begin, area.end});
  }
  cuts.push_back({highest, highest});
  std::ranges::sort(cuts, {}, &Range::begin);
  std::uint64_t begin = lowest;
  for (const auto& cut : cuts) {
    const Range stretch{begin, std::max(begin, cut.begin)};
    begin = std::max(begin, cut.end);
    if (stretch.size() == 0 || tracker_->register_range(stretch.begin, stretch.size(), UFFDIO_REGISTER_MODE_WP))
      continue;
    for (const auto& area : layout_) {
      if (area.begin < stretch.begin || area.end > stretch.end) continue;
      // EBUSY: a userfaultfd of the program's own is there; its pages travel in the freeze.
      if (!tracker_->register_range(area.begin, area.size(), UFFDIO_REGISTER_MODE_WP))
        refusing_.push_back({area.begin, area.end});
    }
  }
}

bool SourceMemory::maps(RemoteAddress address) const {
  return std::ranges::any_of(
      mappings_, [&](const kernel::Mapping& mapping) { return mapping.begin <= address && address < mapping.end; });
}

Result<std::optional<SourceMemory::Reading>> SourceMemory::read_layout(bool with_advice, RemoteAddress leave_out_begin,
                                                                       RemoteAddress leave_out_end) const {
  Reading read;
  if (with_advice || mappings_.empty()) {
    read.mappings = TRY(kernel::read_smaps(process_, &read.text));
  } else {
    read.text = TRY(kernel::read_maps_text(process_));
    if (read.text == text_) return std::nullopt;
    // Advice doesn't show in maps; what overlaps an old mapping keeps its flags.
    read.mappings = TRY(kernel::parse_maps(process_, read.text));
    for (auto& mapping : read.mappings) {
      const auto old = std::ranges::find_if(mappings_, [&](const kernel::Mapping& candidate) {
        return candidate.begin < mapping.end && mapping.begin < candidate.end;
      });
      if (old != mappings_.end()) mapping.vm_flags = old->vm_flags;
      const bool same_file =
          old != mappings_.end() && old->shared && old->device == mapping.device && old->inode == mapping.inode;
      if (mapping.shared && !same_file) {
        // Gone by now: what stands there then is looked at anew.
        const bool writable = kernel::mapped_for_writing(process_, mapping).value_or(true);
        mapping.vm_flags = writable ? "sh" : "";
      }
    }
  }
  read.layout = TRY(layout_of(read.mappings, leave_out_begin, leave_out_end, read.objects));
  return std::optional(std::move(read));
}

Result<void> SourceMemory::look(SourceObjects& objects, bool with_advice, RemoteAddress leave_out_begin,
                                RemoteAddress leave_out_end) {
  left_out_ = {leave_out_begin, leave_out_end};
  Reading now;
  // The kernel tells the mappings one after the other while the program goes on: one that grows or joins its neighbour
  // may be told twice, and one may be gone by the time its object is opened. What is there then is looked at anew.
  constexpr int most_tries = 20;
  for (int tries = 0;; ++tries) {
    auto read = TRY(read_layout(with_advice, leave_out_begin, leave_out_end));
    // While the pod runs the number may be somebody else's by now. In the freeze it can't.
    if (with_advice && !alive()) return fail(ErrorKind::gone, "process {} has ended", pod_.value);
    const Layout& layout = read ? read->layout : layout_;
    if (overlap(layout)) {
      if (tries == most_tries) return fail(ErrorKind::busy, "process {} maps and unmaps all the time", pod_.value);
      continue;
    }
    Result<void> seen;
    for (const auto& area : layout)
      if (area.object != 0 && seen)
        seen = objects.seen(process_, area, read ? read->objects : std::vector<ObjectInfo>{});
    if (!seen && (seen.error().code != ENOENT || tries == most_tries)) return seen;
    if (!seen) continue;
    if (!read) return {};
    now = std::move(*read);
    break;
  }
  for (const auto& change : difference(layout_, now.layout)) {
    if (change.kind == Change::Kind::unmap) {
      sent_.remove({change.area.begin, change.area.end});
      // The destination maps it anew, too: what stands there now may have been collected under the old mapping, and
      // shows clean.
      postponed_.add({change.area.begin, change.area.end});
      lost_.remove({change.area.begin, change.area.end});
    }
    // Likewise, as pages of what stood there before.
    if (change.kind == Change::Kind::map && change.area.backing == Backing::object &&
        std::ranges::any_of(
            layout_, [&](const Area& old) { return old.begin < change.area.end && change.area.begin < old.end; }))
      objects.distrust(change.area.object);
  }
  told_ = told_ && layout_ == now.layout;
  layout_ = std::move(now.layout);
  mappings_ = std::move(now.mappings);
  text_ = std::move(now.text);
  // In the freeze it makes no difference any more: what isn't registered counts as written.
  if (tracker_ && with_advice) register_all();
  return {};
}

Result<void> SourceMemory::scan(const Area& area, bool all, SourceObjects& objects, std::vector<Piece>& pieces) {
  thread_local std::vector<kernel::PageRange> found;
  found.clear();
  auto query = own_pages(area, !all);
  query.write_protect = tracker_.has_value();
  query.check = tracker_.has_value();
  auto done = pagemap_->scan(area.begin, area.end, query, found);
  if (!done && done.error().code == EPERM && tracker_) {
    // A mapping has come to stand where another was: nothing that was known about it holds.
    found.clear();
    for (const auto& run : sent_.runs({area.begin, area.end})) lost_.add(run);
    sent_.remove({area.begin, area.end});
    register_all();
    query = own_pages(area, false);
    query.write_protect = query.check = true;
    done = pagemap_->scan(area.begin, area.end, query, found);
    if (!done && done.error().code == EPERM) {
      query.write_protect = query.check = false;
      found.clear();
      done = pagemap_->scan(area.begin, area.end, query, found);
    }
  }
  if (!done) return done;
  for (const auto& range : found) {
    if (area.backing == Backing::object) {
      objects.mark_dirty(area.object, {range.begin - area.begin + area.offset, range.end - area.begin + area.offset});
    } else {
      pieces.push_back({space(), {range.begin, range.end}});
      sent_.add({range.begin, range.end});
    }
  }
  return {};
}

Result<void> SourceMemory::collect(SourceObjects& objects, std::vector<Piece>& pieces) {
  for (const auto& area : layout_) {
    if (never_written(area)) continue;
    TRY(scan(area, !tracker_, objects, pieces));
  }
  take_postponed(pieces);
  ++collections_;
  return {};
}

Result<void> SourceMemory::collect_only(const PageSet& pages, SourceObjects& objects, std::vector<Piece>& pieces) {
  for (const auto& area : layout_) {
    if (area.backing != Backing::anonymous && area.backing != Backing::file) continue;
    for (const auto& run : pages.runs({area.begin, area.end})) {
      Area part = area;
      part.begin = run.begin;
      part.end = run.end;
      TRY(scan(part, !tracker_, objects, pieces));
    }
  }
  ++collections_;
  return {};
}

PageSet SourceMemory::begin_from(const SourceMemory& base) {
  PageSet there = base.sent_;
  for (const auto& run : base.lost_.all()) there.add(run);
  return lost_ = pages_after_fork(there, base.layout_, layout_);
}

Result<PageSet> SourceMemory::settled() const {
  if (last_) return sent_;
  // Only write-protection can tell.
  if (!tracker_) return PageSet{};
  PageSet unchanged = sent_;
  for (const auto& range : TRY(written_ranges())) unchanged.remove({range.begin, range.end});
  return unchanged;
}

Result<std::vector<Range>> SourceMemory::own_ranges() const {
  std::vector<kernel::PageRange> found;
  for (const auto& area : layout_)
    if (area.backing == Backing::anonymous || area.backing == Backing::file)
      TRY(pagemap_->scan(area.begin, area.end, own_pages(area, false), found));
  std::vector<Range> ranges;
  ranges.reserve(found.size());
  for (const auto& range : found) ranges.push_back({range.begin, range.end});
  return ranges;
}

void SourceMemory::take_postponed(std::vector<Piece>& pieces) {
  std::vector<kernel::PageRange> found;
  for (const auto& area : layout_) {
    if (area.backing == Backing::vdso || area.backing == Backing::object) continue;
    for (const auto& run : postponed_.runs({area.begin, area.end})) {
      found.clear();
      // Gone with its process, if anything.
      if (!pagemap_->scan(run.begin, run.end, own_pages(area, false), found)) continue;
      for (const auto& there : found) {
        // What has been written meanwhile is among the pieces already, and counts as sent.
        for (const auto& rest : sent_.runs({there.begin, there.end}, false)) {
          pieces.push_back({space(), rest});
          sent_.add(rest);
        }
      }
    }
  }
  postponed_.clear();
}

void SourceMemory::note_written(Range range, std::span<const kernel::PageRange> there, std::vector<Piece>& pieces,
                                std::vector<Range>& absent) {
  const auto were_sent = sent_.runs(range);
  for (const auto& run : there) {
    pieces.push_back({space(), {run.begin, run.end}});
    sent_.add({run.begin, run.end});
  }
  // Whatever was sent before and isn't among what is there now has been dropped by the program.
  auto next = there.begin();
  for (const auto& run : were_sent) {
    std::uint64_t at = run.begin;
    while (next != there.end() && next->end <= at) ++next;
    for (auto piece = next; at < run.end; ++piece) {
      const std::uint64_t until = piece == there.end() ? run.end : std::min(run.end, piece->begin);
      if (at < until) {
        absent.push_back({at, until});
        sent_.remove({at, until});
      }
      if (piece == there.end()) break;
      at = std::max(at, piece->end);
    }
  }
}

Result<std::vector<kernel::PageRange>> SourceMemory::written_ranges() const {
  // Mask and result being the same single category takes the kernel's fast path: a fifth of the time of any other
  // query.
  constexpr kernel::PageQuery fast{.mask = page::written, .returned = page::written, .check = true};
  std::vector<kernel::PageRange> found;
  // False: something there isn't registered.
  const auto walk = [&](std::uint64_t begin, std::uint64_t end) -> Result<bool> {
    const std::size_t before = found.size();
    auto done = pagemap_->scan(begin, end, fast, found);
    if (done) return true;
    if (done.error().code != EPERM) return std::unexpected(done.error());
    found.resize(before);
    return false;
  };
  for (std::size_t first = 0, next = 0; first < layout_.size(); first = next) {
    next = first + 1;
    if (layout_[first].backing == Backing::vdso) continue;
    // Neighbours in one walk: a call costs as much as a hundred pages.
    while (next < layout_.size() && layout_[next].backing != Backing::vdso &&
           !(layout_[next - 1].end <= left_out_.begin && left_out_.begin < layout_[next].begin))
      ++next;
    if (TRY(walk(layout_[first].begin, layout_[next - 1].end))) continue;
    for (std::size_t i = first; i < next; ++i)
      if (!TRY(walk(layout_[i].begin, layout_[i].end)))
        found.push_back({layout_[i].begin, layout_[i].end, page::written});
  }
  return found;
}

Result<void> SourceMemory::note_dense() {
  dense_.clear();
  std::vector<kernel::PageRange> found;
  for (const auto& area : layout_) {
    if (area.backing != Backing::anonymous || locked(area)) continue;
    found.clear();
    TRY(pagemap_->scan(area.begin, area.end, own_pages(area, false), found));
    std::uint64_t there = 0;
    for (const auto& range : found) there += range.size();
    // A quarter of a mebibyte takes as long as the call.
    if (there >= 256 * KiB && there * 2 > area.size()) dense_.push_back({area.begin, area.end});
  }
  return {};
}

Result<void> SourceMemory::present(Range range, std::vector<Piece>& pieces) const {
  std::vector<kernel::PageRange> found;
  TRY(pagemap_->scan(range.begin, range.end, {.any_of = resident}, found));
  // The memory of a process that was killed looks as if nothing had ever been in it.
  if (!pagemap_->alive())
    return fail(ErrorKind::gone, "process {} was killed: what was in its memory is lost", pod_.value);
  for (const auto& there : found) pieces.push_back({space(), {there.begin, there.end}});
  return {};
}

Result<void> SourceMemory::collect_last(SourceObjects& objects, std::vector<Piece>& pieces, std::vector<Range>& absent,
                                        std::vector<Range>* unseen) {
  if (std::exchange(last_, true)) return {};
  ++collections_;
  std::vector<kernel::PageRange> there;
  const auto written = tracker_ ? TRY(written_ranges()) : std::vector<kernel::PageRange>{};
  auto from = written.begin();
  for (const auto& area : layout_) {
    if (never_written(area)) continue;
    if (!tracker_) {
      Area rest = area;
      for (const auto& dense : dense_) {
        if (unseen == nullptr || area.backing != Backing::anonymous || locked(area)) break;
        const Range range{std::max(dense.begin, rest.begin), std::min(dense.end, area.end)};
        if (range.begin >= range.end) continue;
        unseen->push_back(range);
        sent_.add(range);  // what was postponed in it isn't told once more
        rest.end = range.begin;
        if (rest.size() > 0) TRY(scan(rest, true, objects, pieces));
        rest.begin = range.end;
        rest.end = area.end;
      }
      if (rest.size() > 0) TRY(scan(rest, true, objects, pieces));
      continue;
    }
    while (from != written.end() && from->end <= area.begin) ++from;
    for (auto at = from; at != written.end() && at->begin < area.end;) {
      // Ranges that lie close together are looked at in one walk: it passes a mebibyte in the time that a call takes.
      auto end = std::next(at);
      while (end != written.end() && end->begin < area.end && end->begin - std::prev(end)->end <= MiB) ++end;
      there.clear();
      TRY(pagemap_->scan(std::max(at->begin, area.begin), std::min(std::prev(end)->end, area.end),
                         own_pages(area, true), there));
      if (area.backing == Backing::object) {
        for (const auto& run : there)
          objects.mark_dirty(area.object, {run.begin - area.begin + area.offset, run.end - area.begin + area.offset});
        at = end;
        continue;
      }
      auto next = std::span(there).begin();
      for (; at != end; ++at) {
        const Range range{std::max(at->begin, area.begin), std::min(at->end, area.end)};
        const auto first = next;
        while (next != std::span(there).end() && next->begin < range.end) ++next;
        note_written(range, {first, next}, pieces, absent);
      }
    }
  }
  take_postponed(pieces);
  // What has come to stand there since was sent, too, or is nothing but missing pages.
  for (const auto& run : lost_.all())
    for (const auto& gone : sent_.runs(run, false)) absent.push_back(gone);
  return {};
}

/// Nobody else has these pages.
bool SourceMemory::own_alone(std::span<const Range> ranges) const {
  for (const auto& range : ranges) {
    const auto entries = pagemap_->entries(range.begin, range.end);
    if (!entries) return false;
    for (const auto entry : *entries)
      if ((entry & kernel::pagemap_present) != 0 && (entry & kernel::pagemap_exclusive) == 0) return false;
  }
  return true;
}

std::size_t SourceMemory::read(std::span<const Range> ranges, std::uint8_t* to) const {
  ranges = ranges.first(std::min(ranges.size(), most_ranges));
  // process_vm_readv pins what it reads, and a page that is pinned is no longer shared copy-on-write (since 5.19: the
  // kernel gives the reader's process a copy). A debugger's way of reading is slower and leaves it alone.
  if (may_share_ && !own_alone(ranges)) {
    std::size_t done = 0;
    for (const auto& range : ranges) {
      if (!file_->read(range.begin, to + done, range.size())) break;
      done += range.size();
    }
    if (done > 0) return done;
  } else {
    std::array<iovec, most_ranges> pieces;
    for (std::size_t i = 0; i < ranges.size(); ++i)
      pieces[i] = {reinterpret_cast<void*>(ranges[i].begin), ranges[i].size()};
    const auto got = kernel::read_memory(process_, std::span(pieces).first(ranges.size()), to);
    // By number: had the process been collected meanwhile, it could have been somebody else's memory.
    if (got && *got >= page_size && pagemap_->alive()) return *got;
  }
  // PROT_NONE, or gone by now.
  return !ranges.empty() && file_->read(ranges.front().begin, to, page_size) ? page_size : 0;
}

Result<std::uint64_t> SourceMemory::dirty_pages() {
  std::vector<kernel::PageRange> found;
  std::uint64_t pages = 0;
  for (const auto& area : layout_) {
    if (area.backing == Backing::vdso) continue;
    found.clear();
    auto done = pagemap_->scan(area.begin, area.end, own_pages(area, tracker_.has_value()), found);
    if (!done) return std::unexpected(done.error());
    for (const auto& range : found) pages += range.size() / page_size;
  }
  return pages;
}

Result<std::uint64_t> SourceMemory::resident_pages() {
  std::uint64_t pages = 0;
  for (const auto& range : TRY(own_ranges())) pages += range.size() / page_size;
  return pages;
}

}  // namespace godwit::migrate
