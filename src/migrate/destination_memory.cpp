#include "migrate/destination_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "migrate/sharing.hpp"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace godwit::migrate {

namespace {

constexpr std::uint64_t user_space_end = 0x7ffffffff000;
constexpr std::uint64_t lowest_address = 0x10000;

std::uint64_t pages_up(std::uint64_t size) {
  return (size + page_size - 1) & ~(page_size - 1);
}

struct Advice {
  std::string_view flag;
  int advice;
};
constexpr std::array<Advice, 5> advices{Advice{"hg", MADV_HUGEPAGE}, Advice{"nh", MADV_NOHUGEPAGE},
                                        Advice{"dc", MADV_DONTFORK}, Advice{"dd", MADV_DONTDUMP},
                                        Advice{"wf", MADV_WIPEONFORK}};

void advise(kernel::Batch& batch, const Area& area) {
  for (const auto& [flag, advice] : advices)
    if (area.flags.find(flag) != std::string::npos)
      batch.call(SYS_madvise, {area.begin, area.size(), static_cast<std::uint64_t>(advice)});
}

/// Adds the calls that map one area. Private files are opened by path in the stub, whose root is the pod's.
void map_area(kernel::Batch& batch, const Area& area, int object_fd, int builder) {
  std::uint64_t flags = MAP_FIXED_NOREPLACE;
  flags |= area.backing == Backing::object ? MAP_SHARED : MAP_PRIVATE;
  if (area.flags.starts_with("gd")) flags |= MAP_GROWSDOWN;
  if (area.flags.find("nr") != std::string::npos) flags |= MAP_NORESERVE;
  const auto protection = static_cast<std::uint64_t>(area.protection);
  const auto what = fmt::format("map {:#x}-{:#x} {}", area.begin, area.end, area.path);
  if (area.backing == Backing::anonymous) {
    batch.must(what, SYS_mmap, {area.begin, area.size(), protection, flags | MAP_ANONYMOUS, ~0ULL, 0});
    if (!area.path.empty())
      batch.call(SYS_prctl, {PR_SET_VMA, PR_SET_VMA_ANON_NAME, area.begin, area.size(), batch.text(area.path)});
  } else {
    const auto opened =
        area.backing == Backing::file && area.object == 0
            ? batch.must("open " + area.path, SYS_open, {batch.text(area.path), O_RDONLY | O_NONBLOCK | O_CLOEXEC})
            : batch.must("fetch shared memory", SYS_pidfd_getfd,
                         {static_cast<std::uint64_t>(builder), static_cast<std::uint64_t>(object_fd), 0});
    const auto mapped = batch.must(what, SYS_mmap, {area.begin, area.size(), protection, flags, 0, area.offset});
    batch.forward(opened, mapped, 4);
    const auto closed = batch.call(SYS_close, {0});
    batch.forward(opened, closed, 0);
  }
  advise(batch, area);
}

}  // namespace

// --- shared objects --------------------------------------------------------------------------------------------------

DestinationObjects::~DestinationObjects() {
  let_go();
}

void DestinationObjects::let_go() {
  for (auto& object : objects_)
    if (object.memory != nullptr) ::munmap(object.memory, object.mapped);
  objects_.clear();
}

Result<void> DestinationObjects::apply(const std::vector<ObjectInfo>& infos, const OpenFile& open_file) {
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const auto& info = infos[i];
    if (i < objects_.size()) {
      auto& object = objects_[i];
      if (object.info.key != info.key || object.info.kind != info.kind)
        return fail(ErrorKind::invalid, "shared memory objects changed their order");
      // What is mapped here for its pages has the size that it was mapped with.
      if (object.memory != nullptr && pages_up(info.size) != object.mapped)
        return fail(ErrorKind::invalid, "shared memory {} changed its size", info.key);
      if ((info.kind == ObjectInfo::Kind::memfd || info.kind == ObjectInfo::Kind::deleted) &&
          object.info.size != info.size && ::ftruncate(object.file.get(), static_cast<off_t>(info.size)) != 0)
        return fail_errno("resize {}", info.name);
      object.info = info;
      TRY(open(object, open_file));
      continue;
    }
    Object object{.info = info};
    TRY(open(object, open_file));
    objects_.push_back(std::move(object));
  }
  return {};
}

Result<void> DestinationObjects::open(Object& object, const OpenFile& open_file) {
  const auto& info = object.info;
  if (object.file || (object.read_only && !info.writable)) return {};
  switch (info.kind) {
    case ObjectInfo::Kind::anonymous: {
      object.mapped = pages_up(info.size);
      object.memory =
          ::mmap(nullptr, object.mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (object.memory == MAP_FAILED) {
        object.memory = nullptr;
        return fail_errno("make {} bytes of shared memory", info.size);
      }
      const auto begin = reinterpret_cast<std::uint64_t>(object.memory);
      object.file = TRY(kernel::open_file(HostPid{::getpid()},
                                          fmt::format("map_files/{:x}-{:x}", begin, begin + object.mapped), O_RDWR));
      break;
    }
    case ObjectInfo::Kind::memfd:
      object.file.reset(::memfd_create(info.name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
      if (!object.file || ::ftruncate(object.file.get(), static_cast<off_t>(info.size)) != 0)
        return fail_errno("make memfd {}", info.name);
      break;
    case ObjectInfo::Kind::file:
      // Opening for writing would copy a file of the node's own root up into the pod's layer.
      if (!object.read_only) object.read_only = TRY(open_file(info.name, O_RDONLY));
      if (info.writable) object.file = TRY(open_file(info.name, O_RDWR));
      return {};
    case ObjectInfo::Kind::deleted:
      object.file = TRY(open_file(info.name, O_RDWR | O_CREAT));
      if (::ftruncate(object.file.get(), static_cast<off_t>(info.size)) != 0)
        return fail_errno("make the deleted file {}", info.name);
      break;
    default:
      return fail(ErrorKind::invalid, "unknown kind of shared memory");
  }
  object.read_only = TRY(kernel::open_file(HostPid{::getpid()}, fmt::format("fd/{}", object.file.get()), O_RDONLY));
  return {};
}

int DestinationObjects::fd(std::uint64_t key, bool writable) const {
  for (const auto& object : objects_)
    if (object.info.key == key) return writable ? object.file.get() : object.read_only.get();
  return -1;
}

Result<void> DestinationObjects::share(objects::MemoryObjects& shared) const {
  for (const auto& object : objects_) {
    if (object.info.kind == ObjectInfo::Kind::file) continue;
    Fd copy(::fcntl(object.file.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy) return fail_errno("duplicate shared memory {}", object.info.name);
    shared.objects.emplace(object.info.descriptor_key != 0 ? object.info.descriptor_key : object.info.key,
                           std::move(copy));
  }
  return {};
}

Result<void> DestinationObjects::write(SpaceId space, std::uint64_t offset, const void* data, std::size_t size) const {
  const std::size_t index = space & ~object_space;
  if (index >= objects_.size()) return fail(ErrorKind::invalid, "pages of an unknown shared object {}", index);
  const Object& object = objects_[index];
  // A file that nobody has mapped for writing has travelled as a file.
  if (offset >= object.info.size || !object.file) return {};
  size = std::min<std::size_t>(size, object.info.size - offset);
  if (object.memory != nullptr) {
    auto* to = static_cast<std::uint8_t*>(object.memory) + offset;
    if (data != nullptr)
      std::memcpy(to, data, size);
    else
      std::memset(to, 0, size);
    return {};
  }
  static const std::array<std::uint8_t, page_size> zeros{};
  for (std::size_t done = 0; done < size;) {
    const auto* from = data != nullptr ? static_cast<const std::uint8_t*>(data) + done : zeros.data();
    const std::size_t part = data != nullptr ? size - done : std::min(size - done, zeros.size());
    const ssize_t wrote = ::pwrite(object.file.get(), from, part, static_cast<off_t>(offset + done));
    if (wrote <= 0) return fail_errno("fill {}", object.info.name);
    done += static_cast<std::size_t>(wrote);
  }
  return {};
}

// --- address spaces --------------------------------------------------------------------------------------------------

Result<kernel::Userfaultfd> DestinationMemory::make_userfaultfd(HostPid process, std::uint64_t features, Hand hand) {
  const long number = TRY(hand.gadget.call(hand.thread, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}));
  if (number < 0) {
    errno = static_cast<int>(-number);
    return fail_errno("make a userfaultfd in process {}", process.value);
  }
  const Fd pidfd = TRY(kernel::pidfd_open(process));
  Fd ours = TRY(kernel::pidfd_getfd(pidfd.get(), static_cast<int>(number)));
  TRY(hand.gadget.call(hand.thread, SYS_close, {static_cast<std::uint64_t>(number)}));
  return kernel::Userfaultfd::handshake(std::move(ours), features);
}

Result<std::unique_ptr<DestinationMemory>> DestinationMemory::empty(HostPid process, PodPid pod, Hand hand) {
  auto memory = std::unique_ptr<DestinationMemory>(new DestinationMemory(pod, TRY(kernel::MemoryFile::open(process))));
  std::vector<ObjectInfo> none;
  std::vector<Range> keep{{hand.gadget.begin(), hand.gadget.begin() + hand.gadget.size()}};
  for (const auto& mapping : TRY(kernel::read_maps(process))) {
    if (!mapping.name.starts_with("[v") || mapping.name == "[vsyscall]") continue;
    keep.push_back({mapping.begin, mapping.end});
    memory->kernel_pages_.push_back({.begin = mapping.begin,
                                     .end = mapping.end,
                                     .protection = mapping.protection,
                                     .backing = Backing::vdso,
                                     .path = mapping.name});
  }
  std::ranges::sort(keep, {}, &Range::begin);
  auto batch = hand.gadget.batch();
  std::uint64_t at = 0;
  for (const auto& range : keep) {
    if (at < range.begin) batch.must("unmap the stub", SYS_munmap, {at, range.begin - at});
    at = range.end;
  }
  if (at < user_space_end) batch.must("unmap the stub", SYS_munmap, {at, user_space_end - at});
  TRY(hand.run(batch));
  memory->filler_ = TRY(make_userfaultfd(process, 0, hand));
  return memory;
}

Result<std::unique_ptr<DestinationMemory>> DestinationMemory::forked(HostPid process, PodPid pod,
                                                                     const DestinationMemory& parent, Hand hand) {
  auto memory = std::unique_ptr<DestinationMemory>(new DestinationMemory(pod, TRY(kernel::MemoryFile::open(process))));
  memory->filler_ = TRY(make_userfaultfd(process, 0, hand));
  memory->layout_ = layout_after_fork(parent.layout_);
  memory->kernel_pages_ = parent.kernel_pages_;
  memory->present_ = pages_after_fork(parent.present_, parent.layout_, memory->layout_);
  for (const auto& area : memory->layout_) TRY(memory->register_area(area));
  return memory;
}

Result<void> DestinationMemory::register_area(const Area& area) {
  if (area.backing != Backing::anonymous || !filler_) return {};
  return filler_->register_range(area.begin, area.size(), UFFDIO_REGISTER_MODE_MISSING);
}

std::unexpected<Error> DestinationMemory::refuse_kernel_pages(std::size_t wanted) const {
  return fail(ErrorKind::refused, "process {} has {} kernel mappings, this node gives {}", pod_.value, wanted,
              kernel_pages_.size());
}

Result<void> DestinationMemory::check_kernel_pages(const Layout& wanted) const {
  const auto count = static_cast<std::size_t>(
      std::ranges::count(wanted, Backing::vdso, [](const Area& area) { return area.backing; }));
  // Who has unmapped all of them doesn't miss any.
  if (count != 0 && count != kernel_pages_.size()) return refuse_kernel_pages(count);
  return {};
}

Result<void> DestinationMemory::move_kernel_pages(const Layout& wanted, Hand hand) {
  Layout targets;
  for (const auto& area : wanted)
    if (area.backing == Backing::vdso) targets.push_back(area);
  // A process in the middle of exec shows not all of them yet.
  if (targets == kernel_pages_ || targets.size() < kernel_pages_.size()) return {};
  if (targets.size() != kernel_pages_.size()) return refuse_kernel_pages(targets.size());
  const auto overlaps = [&](const Area& target) {
    return std::ranges::any_of(kernel_pages_,
                               [&](const Area& now) { return now.begin < target.end && target.begin < now.end; });
  };
  // Where old and new place overlap, a detour past the gadget.
  Layout stops = targets;
  const bool detour = std::ranges::any_of(targets, overlaps);
  auto batch = hand.gadget.batch();
  const auto move = [&](const Layout& to) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      batch.must(
          fmt::format("move {}", to[i].path), SYS_mremap,
          {kernel_pages_[i].begin, kernel_pages_[i].size(), to[i].size(), MREMAP_MAYMOVE | MREMAP_FIXED, to[i].begin});
      kernel_pages_[i].begin = to[i].begin;
      kernel_pages_[i].end = to[i].end;
    }
  };
  for (std::size_t i = 0; i < targets.size(); ++i)
    if (targets[i].path != kernel_pages_[i].path || targets[i].size() != kernel_pages_[i].size())
      return fail(ErrorKind::refused, "process {} has {}, which this node doesn't give", pod_.value, targets[i].path);
  if (detour) {
    std::uint64_t at = hand.gadget.begin() + hand.gadget.size() + MiB;
    for (auto& stop : stops) {
      const auto size = stop.size();
      stop.begin = at;
      stop.end = at + size;
      at += size;
    }
    move(stops);
  }
  move(targets);
  TRY(hand.run(batch));
  kernel_pages_ = targets;
  return {};
}

Result<void> DestinationMemory::apply(const Layout& wanted, const DestinationObjects& objects, int builder, Hand hand,
                                      const CheckFiles& check) {
  Layout target;
  for (const auto& area : wanted)
    if (area.backing != Backing::vdso) target.push_back(area);
  TRY(move_kernel_pages(wanted, hand));
  const auto changes = difference(layout_, target);
  if (changes.empty()) return {};
  std::set<std::string> files;
  for (const auto& [kind, area] : changes)
    if (kind == Change::Kind::map && area.backing == Backing::file && area.object == 0) files.insert(area.path);
  TRY(check(files));
  auto batch = hand.gadget.batch();
  std::vector<Area> fresh;
  for (const auto& change : changes) {
    if (batch.full(16, 2 * KiB + change.area.path.size())) {
      TRY(hand.run(batch));
      batch = hand.gadget.batch();
    }
    const Area& area = change.area;
    switch (change.kind) {
      case Change::Kind::unmap:
        batch.must("unmap", SYS_munmap, {area.begin, area.size()});
        present_.remove({area.begin, area.end});
        break;
      case Change::Kind::grow:
        // In place: it stays one mapping, and registered.
        batch.must(fmt::format("grow {:#x}-{:#x}", area.begin, area.end), SYS_mremap,
                   {area.begin, area.offset, area.size(), 0, 0});
        break;
      case Change::Kind::protect:
        batch.must("protect", SYS_mprotect, {area.begin, area.size(), static_cast<std::uint64_t>(area.protection)});
        break;
      case Change::Kind::advise:
        advise(batch, area);
        break;
      case Change::Kind::map: {
        const int object = area.object != 0 ? objects.fd(area.object, area.writable) : -1;
        if (area.object != 0 && object < 0) return fail(ErrorKind::invalid, "unknown shared memory is mapped");
        map_area(batch, area, object, builder);
        fresh.push_back(area);
        break;
      }
    }
  }
  TRY(hand.run(batch));
  for (const auto& area : fresh) TRY(register_area(area));
  layout_ = std::move(target);
  return {};
}

const Area* DestinationMemory::area_at(std::uint64_t address) const {
  auto after = std::ranges::upper_bound(layout_, address, {}, &Area::begin);
  if (after == layout_.begin()) return nullptr;
  --after;
  return address < after->end ? &*after : nullptr;
}

Result<void> DestinationMemory::write(std::uint64_t address, const void* data, std::size_t size) {
  static const std::vector<std::uint8_t> zeros(max_piece);
  while (size > 0) {
    const Area* area = area_at(address);
    if (area == nullptr) return fail(ErrorKind::invalid, "page {:#x} of process {} is not mapped", address, pod_.value);
    const std::size_t part = std::min<std::size_t>(size, area->end - address);
    const auto* from = data != nullptr ? static_cast<const std::uint8_t*>(data) : zeros.data();
    if (area->backing == Backing::anonymous) {
      std::vector<Range> missing, there;
      {
        const std::scoped_lock lock(mutex_);
        missing = present_.runs({address, address + part}, false);
        there = present_.runs({address, address + part}, true);
        // What is missing and zero stays missing.
        if (data != nullptr) present_.add({address, address + part});
      }
      for (const auto& run : there)
        TRY(file_.write(run.begin, from + (data != nullptr ? run.begin - address : 0), run.size()));
      if (data != nullptr) {
        for (const auto& run : missing) {
          for (std::uint64_t at = run.begin; at < run.end;) {
            const auto copied = TRY(filler_->copy(at, from + (at - address), run.end - at, false));
            at += copied;
            if (copied == 0) {
              TRY(file_.write(at, from + (at - address), page_size));
              at += page_size;
            }
          }
        }
      }
    } else {
      TRY(file_.write(address, from, part));
    }
    address += part;
    size -= part;
    if (data != nullptr) data = static_cast<const std::uint8_t*>(data) + part;
  }
  return {};
}

bool DestinationMemory::waits_for(std::uint64_t address) {
  const Area* area = area_at(address);
  if (!filler_ || area == nullptr || area->backing != Backing::anonymous) return false;
  const std::scoped_lock lock(mutex_);
  return !present_.contains(address);
}

Result<void> DestinationMemory::lock(Hand hand) {
  auto batch = hand.gadget.batch();
  for (const auto& area : layout_) {
    if (area.flags.find("lo") == std::string::npos) continue;
    if (batch.full(1, 64)) {
      TRY(hand.run(batch));
      batch = hand.gadget.batch();
    }
    const bool on_fault = area.flags.find("lf") != std::string::npos;
    // What is still missing is zeros now: locking would wait for it for ever.
    if (!on_fault && area.backing == Backing::anonymous && filler_)
      TRY(filler_->unregister_range(area.begin, area.size()));
    batch.call(SYS_mlock2, {area.begin, area.size(), on_fault ? 1U /* MLOCK_ONFAULT */ : 0U});
  }
  return batch.empty() ? Result<void>{} : hand.run(batch);
}

Result<void> DestinationMemory::drop(const std::vector<Range>& ranges, Hand hand) {
  auto batch = hand.gadget.batch();
  for (const auto& range : ranges) {
    if (batch.full(1, 64)) {
      TRY(hand.run(batch));
      batch = hand.gadget.batch();
    }
    batch.call(SYS_madvise, {range.begin, range.size(), MADV_DONTNEED});
    present_.remove(range);
  }
  if (!batch.empty()) TRY(hand.run(batch));
  return {};
}

Result<kernel::Userfaultfd> DestinationMemory::begin_reference(kernel::Userfaultfd pager) {
  filler_.reset();  // closing it unregisters everything
  for (const auto& area : layout_)
    if (area.backing == Backing::anonymous && !locked(area))
      TRY(pager.register_range(area.begin, area.size(), UFFDIO_REGISTER_MODE_MISSING));
  return pager;
}

RemoteAddress quiet_place(const std::vector<const Layout*>& layouts, std::size_t size) {
  std::vector<Range> taken;
  for (const auto* layout : layouts)
    for (const auto& area : *layout) taken.push_back({area.begin, area.end});
  taken.push_back({user_space_end, user_space_end});
  std::ranges::sort(taken, {}, &Range::begin);
  std::uint64_t at = lowest_address, best = 0, room = 0;
  for (const auto& range : taken) {
    if (range.begin > at && range.begin - at > room) {
      room = range.begin - at;
      best = at;
    }
    at = std::max(at, range.end);
  }
  return room < size ? 0 : (best + room / 2) & ~(page_size - 1);
}

}  // namespace godwit::migrate
