#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/memory.hpp"
#include "kernel/remote.hpp"
#include "kernel/tracee.hpp"
#include "kernel/userfaultfd.hpp"
#include "migrate/layout.hpp"
#include "migrate/page_stream.hpp"
#include "objects/memory_object.hpp"

/// The memory of a pod that is arriving: address spaces of stopped stubs that take on the source's layout and are
/// filled from outside.
namespace godwit::migrate {

/// A thread of an arriving process: stopped, traced, standing in the gadget, until its registers are set.
struct Hand {
  kernel::Tracee& thread;
  kernel::Gadget& gadget;
  Result<void> run(kernel::Batch& batch) { return gadget.run(thread, batch); }
};

/// The pod's shared memory objects, made here before anything maps them, and filled through mappings of our own.
class DestinationObjects {
 public:
  ~DestinationObjects();
  using OpenFile = std::function<Result<Fd>(const std::string& path, int flags)>;
  /// Makes what is new and gives all of them their sizes. Files are opened by `open_file` (on the pod's workshop); with
  /// O_CREAT (Kind::deleted) it makes one that has no name any more.
  Result<void> apply(const std::vector<ObjectInfo>&, const OpenFile& open_file);
  /// Our descriptor of the object, opened for reading only or for writing, too; -1 when there is none.
  [[nodiscard]] int fd(std::uint64_t key, bool writable) const;
  Result<void> write(SpaceId, std::uint64_t offset, const void* data, std::size_t size) const;
  /// Duplicates for the descriptors that are memory objects too.
  Result<void> share(objects::MemoryObjects&) const;
  /// Ends our mappings; the pod's own keep the objects alive.
  void let_go();
  DestinationObjects() = default;
  DestinationObjects(const DestinationObjects&) = delete;
  DestinationObjects& operator=(const DestinationObjects&) = delete;

 private:
  struct Object {
    ObjectInfo info;
    Fd file;                 ///< for reading and writing; a Kind::file that nobody writes: none
    Fd read_only;            ///< for mappings that were made for reading only
    void* memory = nullptr;  ///< Kind::anonymous: its first mapping, which made it
    std::uint64_t mapped = 0;
  };
  static Result<void> open(Object&, const OpenFile&);
  std::vector<Object> objects_;  ///< position = space id without the top bit
};

/// Paths in the pod's root, each once.
using CheckFiles = std::function<Result<void>(const std::set<std::string>& paths)>;

/// One process's address space at the destination.
class DestinationMemory {
 public:
  /// Takes a fresh stub over: unmaps all but the gadget and the kernel's own pages, and makes the userfaultfd it is
  /// filled through.
  static Result<std::unique_ptr<DestinationMemory>> empty(HostPid, PodPid, Hand);
  /// The address space of a process just forked from another arriving one, as it is: the same layout, the same pages.
  static Result<std::unique_ptr<DestinationMemory>> forked(HostPid, PodPid, const DestinationMemory& parent, Hand);

  [[nodiscard]] PodPid pod() const { return pod_; }
  [[nodiscard]] const Layout& layout() const { return layout_; }

  /// Turns the address space into `wanted`. `builder` is the number, in the stub's table, of a pidfd of this daemon.
  /// The stub may open any file: `check` is asked first whether the pod's user may read those that are to be mapped.
  Result<void> apply(const Layout& wanted, const DestinationObjects&, int builder, Hand, const CheckFiles& check);
  /// Of the final layout: the kernel's own pages are as many as this node gives. A process in the middle of exec, which
  /// `apply` may meet while the pod runs, doesn't have all of them yet.
  [[nodiscard]] Result<void> check_kernel_pages(const Layout& wanted) const;
  /// Puts pages in place; null data is zeros. Any thread.
  Result<void> write(std::uint64_t address, const void* data, std::size_t size);
  /// mlock, once all pages are in place or known to be owed: those that are owed are fetched by it.
  Result<void> lock(Hand);
  /// Pages that the program has dropped.
  Result<void> drop(const std::vector<Range>&, Hand);
  /// Ends the filling: pages that are missing from now on are zeros by the kernel's own hand. Until then whoever
  /// touches one waits, and for ever should the source have left it out.
  void close() { filler_.reset(); }
  /// Whether a process that touches this waits for a page that hasn't come.
  [[nodiscard]] bool waits_for(std::uint64_t address);
  /// For what is fetched on reference: gives the filler up and registers the areas with one that also reports forks,
  /// moves and drops.
  Result<kernel::Userfaultfd> begin_reference(kernel::Userfaultfd pager);
  [[nodiscard]] PageSet& present() { return present_; }

  /// Makes a userfaultfd in the stub and pulls it out.
  static Result<kernel::Userfaultfd> make_userfaultfd(HostPid, std::uint64_t features, Hand);

 private:
  DestinationMemory(PodPid pod, kernel::MemoryFile file) : pod_(pod), file_(std::move(file)) {}
  Result<void> register_area(const Area&);
  [[nodiscard]] std::unexpected<Error> refuse_kernel_pages(std::size_t wanted) const;
  Result<void> move_kernel_pages(const Layout& wanted, Hand);
  [[nodiscard]] const Area* area_at(std::uint64_t address) const;

  PodPid pod_;
  /// Whoever sends pages writes through this: it stays with this very memory, a number doesn't.
  kernel::MemoryFile file_;
  std::optional<kernel::Userfaultfd> filler_;
  Layout layout_;        ///< without the kernel's own pages
  Layout kernel_pages_;  ///< where vvar and vdso stand now
  std::mutex mutex_;     ///< guards present_
  PageSet present_;
};

/// A place for the gadget that is free in every one of the layouts, far from what grows.
[[nodiscard]] RemoteAddress quiet_place(const std::vector<const Layout*>& layouts, std::size_t size);

}  // namespace godwit::migrate
