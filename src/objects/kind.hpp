#pragma once

#include <sys/stat.h>

#include <any>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"
#include "kernel/remote.hpp"
#include "objects/permission.hpp"

/// What a kind of descriptor is: how it is recognised, refused, captured and rebuilt.
///
/// The stages, and what is true at each:
///   preflight  the pod runs. What can't move is refused here, by name. Nothing may be consumed or changed.
///   capture    every thread of the pod is stopped, no packet comes in. State is read from our duplicate and nothing is
///   consumed,
///              so the pod can still go on here.
///   build      at the destination, on the pod's workshop thread: inside its net, mount, ipc and uts namespaces, as
///   root.
///              Nothing of the pod runs. Makes the open file description.
///   attach     every description stands in the table of every process that holds it, under its number. What the kernel
///   keys by
///              process or by descriptor number (epoll registrations, record locks) is made by a batch in that process.
///   open       the commit has happened: this is the only copy. What must stay silent before (a socket's repair mode)
///   ends here.
namespace godwit::objects {

/// Names one open file description within a pod's image. Dense, from 0.
using ObjectId = std::uint32_t;

/// A process that has the description in its table.
struct Holder {
  PodPid process;  ///< thread group leader of (the first of) the processes that share the table
  int number = -1;
  bool close_on_exec = false;
  MSGPACK_DEFINE_MAP(process, number, close_on_exec)
};

/// One open file description, seen through a duplicate of our own.
struct Descriptor {
  ObjectId id = 0;
  int fd = -1;  ///< our duplicate, open for as long as the call
  struct stat status {};
  std::string link;  ///< readlink of /proc/PID/fd/N as the daemon sees it: "pipe:[12]", "/var/x (deleted)"
  int flags = 0;     ///< F_GETFL: access mode and status flags
  /// Source::stream(status), asked once by whoever makes this: "stdin", "terminal" … or empty when it is no stream of
  /// the init's. What a `matches` goes by.
  std::string stream;
  std::vector<Holder> holders;
};

/// The same open file description is in every holder's table; here is what else capture may ask about the pod that is
/// leaving.
class Source {
 public:
  virtual ~Source() = default;
  /// All descriptions of the pod. The position in the vector is the id.
  [[nodiscard]] virtual const std::vector<Descriptor>& descriptors() const = 0;
  /// The description behind a number in a process's table: what an epoll instance watches.
  [[nodiscard]] virtual std::optional<ObjectId> find(PodPid process, int number) const = 0;
  /// A description of the init's that the pod's streams end in ("stdin", "stdout", "stderr", "terminal", and with an
  /// execution's id and a slash in front), by inode. It is made anew by the destination's init and never travels.
  [[nodiscard]] virtual std::optional<std::string> stream(const struct stat&) const = 0;
  /// The pod's upper layer (its own writes) and its merged root, as paths that are valid here.
  [[nodiscard]] virtual const std::string& upper() const = 0;
  [[nodiscard]] virtual const std::string& root() const = 0;
  /// Host id to pod id and back, nullopt when it isn't one of the pod's.
  [[nodiscard]] virtual std::optional<PodPid> pod_pid(HostPid) const = 0;
  [[nodiscard]] virtual std::optional<HostPid> host_pid(PodPid) const = 0;
  /// State shared by several captures of one pod, made at first use: a table read once from sock_diag, say.
  template <typename T>
  T& shared(const std::string& key) {
    auto& slot = shared_[key];
    if (!slot.has_value()) slot = std::make_shared<T>();
    return *std::any_cast<std::shared_ptr<T>&>(slot);
  }

 private:
  std::map<std::string, std::any> shared_;
};

/// A process of a pod that is being rebuilt: stopped, root, with no descriptor but `builder`, a pidfd of this daemon.
class Stub {
 public:
  virtual ~Stub() = default;
  [[nodiscard]] virtual HostPid process() const = 0;
  [[nodiscard]] virtual int builder() const = 0;
  [[nodiscard]] virtual kernel::Batch batch() const = 0;
  virtual Result<void> run(kernel::Batch&) = 0;
};

/// Where a pod is being rebuilt: the calls run on its workshop thread.
class Destination {
 public:
  virtual ~Destination() = default;
  /// A description that was built before (lower id, or an earlier pass); -1 when it hasn't been.
  [[nodiscard]] virtual int built(ObjectId) const = 0;
  /// The pod's end of a stream of the destination's init.
  [[nodiscard]] virtual Result<Fd> stream(const std::string& name) = 0;
  [[nodiscard]] virtual std::optional<HostPid> host_pid(PodPid) const = 0;
  /// Whose permissions count for what is opened by name; null: root's.
  [[nodiscard]] virtual const Opener* opener() const { return nullptr; }
  /// What the kernel remembers by the process that does it (SO_PEERCRED) is done by that process: `work` runs with it
  /// while the build waits, on the thread that traces it. ErrorKind::not_found when it isn't there, or not any more.
  virtual Result<void> as_process(PodPid process, const std::function<Result<void>(Stub&)>& work) {
    static_cast<void>(work);
    return fail(ErrorKind::not_found, "process {} is not there", process.value);
  }
  /// Done when every description is built, on the workshop thread, in the order in which it was given.
  void when_built(std::function<Result<void>()> work) { when_built_.push_back(std::move(work)); }
  Result<void> all_built() {
    for (const auto& work : std::exchange(when_built_, {})) TRY(work());
    return {};
  }
  /// As Source::shared: the two ends of one pipe find each other here.
  template <typename T>
  T& shared(const std::string& key) {
    auto& slot = shared_[key];
    if (!slot.has_value()) slot = std::make_shared<T>();
    return *std::any_cast<std::shared_ptr<T>&>(slot);
  }

 private:
  std::map<std::string, std::any> shared_;
  std::vector<std::function<Result<void>()>> when_built_;
};

/// One kind of descriptor. All functions are set; a stage that a kind has no need for is `nothing_to_…`, said aloud.
struct Kind {
  std::string_view name;  ///< in the image and in messages: "pipe", "tcp"
  bool (*matches)(const Descriptor&);
  Result<void> (*preflight)(const Descriptor&, Source&);
  Result<Bytes> (*capture)(const Descriptor&, Source&);
  Result<Fd> (*build)(BytesView state, Destination&);
  Result<void> (*attach)(BytesView state, const Holder&, kernel::Batch&, Destination&);
  Result<void> (*open)(BytesView state, int fd, Destination&);
};

inline Result<void> nothing_to_preflight(const Descriptor&, Source&) {
  return {};
}
inline Result<void> nothing_to_attach(BytesView, const Holder&, kernel::Batch&, Destination&) {
  return {};
}
inline Result<void> nothing_to_open(BytesView, int, Destination&) {
  return {};
}

/// All kinds, in the order in which they are asked whether a description is theirs. The only list.
[[nodiscard]] const std::vector<const Kind*>& kinds();
/// The kind of a description; nullptr when none knows it (preflight refuses it by name).
[[nodiscard]] const Kind* kind_of(const Descriptor&);
[[nodiscard]] const Kind* kind_named(std::string_view name);

/// One object in a pod's image.
struct Image {
  std::string kind;
  Bytes state;
  Bytes common;  ///< what every description has (objects/common.hpp); empty when there is nothing to say
  std::vector<Holder> holders;
  MSGPACK_DEFINE_MAP(kind, state, common, holders)
};

}  // namespace godwit::objects
