#include "migrate/layout.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "objects/memory_object.hpp"

namespace godwit::migrate {

namespace {

/// VmFlags that a mapping can be given at the destination: growsdown, huge page advice, don't fork/dump/wipe, locked,
/// no reserve.
constexpr std::array<std::string_view, 9> settable{"gd", "hg", "nh", "dc", "dd", "wf", "lo", "lf", "nr"};

std::string settable_flags(std::string_view flags) {
  std::string kept;
  for (const auto flag : settable)
    if (flags.find(flag) != std::string_view::npos) kept += (kept.empty() ? "" : " ") + std::string(flag);
  return kept;
}

bool ends_with_deleted(std::string_view name) {
  return name.ends_with(" (deleted)");
}

std::string without_deleted(std::string_view name) {
  if (ends_with_deleted(name)) name.remove_suffix(std::string_view(" (deleted)").size());
  return std::string(name);
}

Result<ObjectInfo> object_of(const kernel::Mapping& mapping) {
  ObjectInfo info;
  info.key = objects::memory_object_key(mapping.device, mapping.inode);
  const std::string_view name = mapping.name;
  if (name.starts_with("/dev/zero")) {
    info.kind = ObjectInfo::Kind::anonymous;
  } else if (name.starts_with("/memfd:")) {
    info.kind = ObjectInfo::Kind::memfd;
    info.name = without_deleted(name.substr(std::string_view("/memfd:").size()));
  } else if (name.starts_with("/SYSV")) {
    return fail(ErrorKind::refused, "System V shared memory {} is mapped", name);
  } else if (name.starts_with("anon_inode:") || name.starts_with("[io_uring")) {
    return fail(ErrorKind::refused, "{} is mapped", name);
  } else if (ends_with_deleted(name)) {
    info.kind = ObjectInfo::Kind::deleted;
    info.name = without_deleted(name);
  } else if (name.starts_with("/dev/") && !name.starts_with("/dev/shm/")) {
    return fail(ErrorKind::refused, "the device {} is mapped", name);
  } else {
    info.kind = ObjectInfo::Kind::file;
    info.name = name;
  }
  return info;
}

bool grows_down(const Area& area) {
  return area.flags.starts_with("gd");
}

bool same_identity(const Area& a, const Area& b) {
  return a.backing == b.backing && a.path == b.path && a.object == b.object && a.writable == b.writable &&
         grows_down(a) == grows_down(b) &&
         (a.backing == Backing::anonymous || a.offset - a.begin == b.offset - b.begin);
}

Area cut(const Area& area, std::uint64_t begin, std::uint64_t end) {
  Area part = area;
  if (area.backing == Backing::file || area.backing == Backing::object) part.offset += begin - area.begin;
  part.begin = begin;
  part.end = end;
  return part;
}

}  // namespace

Result<Layout> layout_of(const std::vector<kernel::Mapping>& mappings, RemoteAddress leave_out_begin,
                         RemoteAddress leave_out_end, std::vector<ObjectInfo>& objects) {
  Layout layout;
  layout.reserve(mappings.size());
  for (const auto& mapping : mappings) {
    if (mapping.begin >= leave_out_begin && mapping.end <= leave_out_end) continue;
    if (mapping.name == "[vsyscall]") continue;
    Area area{.begin = mapping.begin, .end = mapping.end, .protection = mapping.protection};
    area.flags = settable_flags(mapping.vm_flags);
    if (mapping.name.starts_with("[v")) {
      area.backing = Backing::vdso;
      area.path = mapping.name;
      area.flags.clear();
    } else if (mapping.shared) {
      const ObjectInfo info = TRY(object_of(mapping));
      area.backing = Backing::object;
      area.object = info.key;
      area.offset = mapping.offset;
      // VM_SHARED: what was opened for reading only is "may be shared".
      area.writable = mapping.vm_flags.find("sh") != std::string::npos;
      auto known = std::ranges::find(objects, info.key, &ObjectInfo::key);
      if (known == objects.end()) known = objects.insert(known, info);
      known->writable = known->writable || area.writable;
    } else if (mapping.inode != 0 || mapping.name.starts_with('/')) {
      if (mapping.name.starts_with("/anon_hugepage") || mapping.name.starts_with("/memfd:"))
        return fail(ErrorKind::refused, "{} is mapped privately", mapping.name);
      area.backing = Backing::file;
      area.path = mapping.name;
      area.offset = mapping.offset;
      if (ends_with_deleted(mapping.name)) {
        const ObjectInfo info = TRY(object_of(mapping));
        area.path = info.name;
        area.object = info.key;
        if (std::ranges::find(objects, info.key, &ObjectInfo::key) == objects.end()) objects.push_back(info);
      }
    } else if (mapping.name.starts_with("[anon:")) {
      area.path = mapping.name.substr(6, mapping.name.size() - 7);
    }
    if (mapping.vm_flags.find("ht") != std::string::npos)
      return fail(ErrorKind::refused, "huge TLB pages are mapped at {:#x}", mapping.begin);
    layout.push_back(std::move(area));
  }
  return layout;
}

std::vector<Change> difference(const Layout& from, const Layout& to) {
  std::vector<Change> unmaps, changes;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> kept;  // of `from`, in order
  std::size_t first = 0;
  for (const auto& area : to) {
    while (first < from.size() && from[first].end <= area.begin) ++first;
    const Area* old = first < from.size() && from[first].begin < area.end ? &from[first] : nullptr;
    const bool alone = old != nullptr && (first + 1 == from.size() || from[first + 1].begin >= area.end);
    // A mapping stays one mapping: what two old ones would have to make up together is mapped anew.
    const bool inside = alone && same_identity(*old, area) && old->begin <= area.begin && old->end >= area.end;
    const bool grown = alone && same_identity(*old, area) && old->begin == area.begin && old->end < area.end;
    if (!inside && !grown) {
      changes.push_back({Change::Kind::map, area});
      continue;
    }
    if (grown) {
      Area whole = area;
      whole.offset = old->end - old->begin;
      changes.push_back({Change::Kind::grow, whole});
    }
    kept.emplace_back(std::max(old->begin, area.begin), std::min(old->end, area.end));
    if (old->protection != area.protection) changes.push_back({Change::Kind::protect, area});
    if (old->flags != area.flags) changes.push_back({Change::Kind::advise, area});
  }
  std::size_t next = 0;
  for (const auto& area : from) {
    std::uint64_t at = area.begin;
    for (; next < kept.size() && kept[next].first < area.end; ++next) {
      if (at < kept[next].first) unmaps.push_back({Change::Kind::unmap, cut(area, at, kept[next].first)});
      at = kept[next].second;
    }
    if (at < area.end) unmaps.push_back({Change::Kind::unmap, cut(area, at, area.end)});
  }
  unmaps.insert(unmaps.end(), std::make_move_iterator(changes.begin()), std::make_move_iterator(changes.end()));
  return unmaps;
}

}  // namespace godwit::migrate
