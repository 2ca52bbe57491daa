#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "objects/content.hpp"
#include "objects/descriptor.hpp"
#include "objects/directory.hpp"
#include "objects/kinds.hpp"
#include "objects/locks.hpp"
#include "objects/memory_object.hpp"
#include "objects/nameless.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

/// What brings a file's content to the destination.
enum class Carrier {
  root,    ///< the pod's root: its upper layer travels, its lower one is compared by the manifest
  state,   ///< this state, or the memory engine for what is mapped: nameless files, and file systems in memory
  kernel,  ///< nothing: /proc and /sys are there too
};

struct State {
  std::string path;       ///< in the pod, without " (deleted)"
  std::string opened_as;  ///< the name it was opened by, where that was removed and `path` is another one
  bool deleted = false;
  bool temporary = false;  ///< made by O_TMPFILE: it may be given a name yet
  std::string carrier;
  std::uint64_t key = 0;  ///< memory_object_key, for what this state carries
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t size = 0;
  std::int64_t modified = 0, accessed = 0;  ///< nanoseconds since 1970
  int flags = 0;
  std::int64_t position = 0;
  ReadingPosition reading;  ///< directories that have been read from
  bool has_content = false;
  Content content;
  std::vector<FileLock> locks;
  MSGPACK_DEFINE_MAP(path, opened_as, deleted, temporary, carrier, key, mode, uid, gid, size, modified, accessed, flags,
                     position, reading, has_content, content, locks)
};

/// F_GETFL shows it of the description that made the file, not of others for the same file.
constexpr int temporary_flag = O_TMPFILE & ~O_DIRECTORY;
constexpr std::string_view deleted_suffix = " (deleted)";
constexpr std::int64_t second = 1'000'000'000;

bool matches(const Descriptor& descriptor) {
  const auto mode = descriptor.status.st_mode;
  return descriptor.link.starts_with("/") && ((descriptor.flags & O_PATH) != 0 || S_ISREG(mode) || S_ISDIR(mode));
}

Result<std::uint64_t> mount_of(int directory, const char* path) {
  struct statx status {};
  if (::statx(directory, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_MNT_ID, &status) < 0)
    return fail_errno("statx {}", path);
  return status.stx_mnt_id;
}

/// The mount that is the pod's root, asked once.
struct Root {
  Fd directory;
  std::uint64_t mount = 0;
};
Result<Root*> root_of(Source& source) {
  auto& root = source.shared<Root>("root");
  if (!root.directory) {
    root.directory.reset(::open(source.root().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root.directory) return fail_errno("open {}", source.root());
    root.mount = TRY(mount_of(root.directory.get(), ""));
  }
  return &root;
}

Result<Fd> open_beneath(int root, const std::string& path) {
  struct open_how how {};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  Fd fd{static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how))};
  if (!fd) return fail_errno("open {}", path);
  return fd;
}

bool leads_to(int root, const std::string& path, const struct stat& expected) {
  const auto fd = open_beneath(root, path);
  struct stat status {};
  return fd && ::fstat(fd->get(), &status) == 0 && inode_key(status) == inode_key(expected);
}

/// Another name of a file whose name at opening was removed: hard links are the pod's own writes, so they are in its
/// upper layer.
std::optional<std::string> other_name(const Descriptor& descriptor, Source& source, int root) {
  std::error_code problem;
  std::filesystem::recursive_directory_iterator at(source.upper(), problem), end;
  for (; !problem && at != end; at.increment(problem)) {
    struct stat status {};
    if (::lstat(at->path().c_str(), &status) < 0 || !S_ISREG(status.st_mode)) continue;
    if (status.st_nlink != descriptor.status.st_nlink || status.st_size != descriptor.status.st_size) continue;
    const std::string path = "/" + at->path().lexically_relative(source.upper()).string();
    if (leads_to(root, path, descriptor.status)) return path;
  }
  return std::nullopt;
}

bool is_in_memory(long type) {
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC;
}

/// What the kernel makes up itself.
bool is_kernels(long type) {
  return type == PROC_SUPER_MAGIC || type == SYSFS_MAGIC || type == CGROUP2_SUPER_MAGIC;
}

/// Where a description's file is and what brings it along.
struct Place {
  std::string path;
  std::string opened_as;  ///< as in State
  bool deleted = false;
  Carrier carrier = Carrier::root;
};

Result<Place> place_of(const Descriptor& descriptor, Source& source) {
  const auto* root = TRY(root_of(source));
  const auto& link = descriptor.link;
  struct statfs system {};
  if (::fstatfs(descriptor.fd, &system) < 0) return fail_errno("fstatfs {}", link);
  Place place{.path = link};
  if (TRY(mount_of(descriptor.fd, "")) == root->mount) {
    place.carrier = Carrier::root;
  } else if (is_in_memory(system.f_type)) {
    place.carrier = Carrier::state;
  } else if (is_kernels(system.f_type)) {
    place.carrier = Carrier::kernel;
    return place;
  } else {
    return fail(ErrorKind::refused, "{}: a file on a mount (type {:#x}) that is not the pod's root", link,
                static_cast<unsigned long>(system.f_type));
  }
  if (leads_to(root->directory.get(), place.path, descriptor.status)) return place;
  if (!link.ends_with(deleted_suffix))
    return fail(ErrorKind::refused, "{}: hidden below a mount: its name leads to another file", link);
  place.path.resize(link.size() - deleted_suffix.size());
  if (descriptor.status.st_nlink > 0 && !S_ISDIR(descriptor.status.st_mode)) {
    if (auto name = other_name(descriptor, source, root->directory.get())) {
      place.opened_as = std::exchange(place.path, std::move(*name));
      return place;
    }
    return fail(ErrorKind::refused, "{}: it has another name that was not found in the pod", link);
  }
  place.deleted = true;
  place.carrier = Carrier::state;
  return place;
}

std::uint64_t key_of(const Descriptor& descriptor) {
  return memory_object_key(descriptor.status.st_dev, descriptor.status.st_ino);
}

bool carried_by_memory(const Descriptor& descriptor, Source& source) {
  return source.shared<MemoryObjectKeys>("memory-objects").keys.contains(key_of(descriptor));
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  const auto place = TRY(place_of(descriptor, source));
  TRY(capture_locks(descriptor, source));
  const auto mode = descriptor.status.st_mode;
  if (place.deleted && (descriptor.flags & O_PATH) != 0 && !S_ISREG(mode) && !S_ISDIR(mode))
    return fail(ErrorKind::refused, "{}: an O_PATH descriptor of a name that was removed", descriptor.link);
  if (place.carrier == Carrier::state && S_ISREG(mode) && !carried_by_memory(descriptor, source)) {
    const std::uint64_t bytes = TRY(estimate_content(descriptor.fd));
    if (bytes > largest_content)
      return fail(ErrorKind::refused, "{}: {} MiB that only a descriptor keeps", descriptor.link, bytes / MiB);
  }
  return {};
}

std::string_view name_of(Carrier carrier) {
  switch (carrier) {
    case Carrier::root:
      return "root";
    case Carrier::state:
      return "state";
    case Carrier::kernel:
      return "kernel";
  }
  return {};
}

/// O_TMPFILE calls its files "#INODE" (d_mark_tmpfile).
bool is_temporary_name(const std::string& path) {
  const auto name = path.substr(path.rfind('/') + 1);
  return name.size() > 1 && name[0] == '#' && name.find_first_not_of("0123456789", 1) == std::string::npos;
}

/// Which files came with their content already: several descriptions share an inode.
struct Captured {
  std::set<std::uint64_t> keys;
};

Result<State> capture(const Descriptor& descriptor, Source& source) {
  const auto place = TRY(place_of(descriptor, source));
  const auto& status = descriptor.status;
  State state{.path = place.path,
              .opened_as = place.opened_as,
              .deleted = place.deleted,
              .temporary = place.deleted && is_temporary_name(place.path),
              .carrier = std::string(name_of(place.carrier)),
              .key = key_of(descriptor),
              .mode = status.st_mode,
              .uid = status.st_uid,
              .gid = status.st_gid,
              .size = static_cast<std::uint64_t>(status.st_size),
              .modified = status.st_mtim.tv_sec * second + status.st_mtim.tv_nsec,
              .accessed = status.st_atim.tv_sec * second + status.st_atim.tv_nsec,
              .flags = descriptor.flags};
  const bool path_only = (descriptor.flags & O_PATH) != 0;
  if (!path_only) {
    state.position = std::max<off_t>(::lseek(descriptor.fd, 0, SEEK_CUR), 0);
    state.locks = TRY(capture_locks(descriptor, source));
    if (S_ISDIR(status.st_mode) && state.position > 0 && place.carrier != Carrier::kernel && !place.deleted) {
      const Fd own = TRY(reopen(descriptor.fd, O_RDONLY | O_DIRECTORY));
      state.reading = TRY(read_position(own.get(), state.position));
    }
  }
  if (place.carrier == Carrier::state && S_ISREG(status.st_mode) && !carried_by_memory(descriptor, source)) {
    state.has_content = source.shared<Captured>("files").keys.insert(state.key).second;
    if (state.has_content) {
      const Fd own = TRY(reopen(descriptor.fd, O_RDONLY));
      state.content = TRY(read_content(own.get()));
    }
  }
  return state;
}

Result<void> set_metadata(int fd, const State& state) {
  if (::fchown(fd, state.uid, state.gid) < 0 || ::fchmod(fd, state.mode & 07777) < 0)
    return fail_errno("owner and mode of {}", state.path);
  const struct timespec times[2] = {{.tv_sec = state.accessed / second, .tv_nsec = state.accessed % second},
                                    {.tv_sec = state.modified / second, .tv_nsec = state.modified % second}};
  if (::futimens(fd, times) < 0) return fail_errno("times of {}", state.path);
  return {};
}

/// The type of the file system that a directory of the pod lies on. The kernel gave us the name that it had found,
/// without links: where there are some now, something else is meant, and with the links of /proc anything could be.
Result<long> file_system_of(const std::string& directory) {
  struct open_how how {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_NO_SYMLINKS;
  const Fd fd{static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, directory.c_str(), &how, sizeof how))};
  struct statfs system {};
  if (!fd || ::fstatfs(fd.get(), &system) < 0) return fail_errno("open {}", directory);
  return system.f_type;
}

/// Where a file without a name can be made that had this one.
std::string parent_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path().string();
  const auto type = file_system_of(parent);
  return type && !is_kernels(*type) ? parent : "/";
}

/// `refused` unless what of the directory is there lies in memory: nothing else comes with an image's own content.
Result<void> check_in_memory(const std::filesystem::path& directory) {
  const auto type = file_system_of(directory.string());
  if (type && is_in_memory(*type)) return {};
  if (type)
    return fail(ErrorKind::refused, "{} is not in memory here, and its files don't travel one by one",
                directory.string());
  if (type.error().code != ENOENT || directory == directory.parent_path()) return std::unexpected(type.error());
  return check_in_memory(directory.parent_path());
}

/// A directory that we write into on the way looks untouched afterwards.
class Untouched {
 public:
  explicit Untouched(std::string path) : path_(std::move(path)), known_(::stat(path_.c_str(), &status_) == 0) {}
  ~Untouched() {
    const struct timespec times[2] = {status_.st_atim, status_.st_mtim};
    if (known_) ::utimensat(AT_FDCWD, path_.c_str(), times, 0);
  }
  Untouched(const Untouched&) = delete;
  Untouched& operator=(const Untouched&) = delete;

 private:
  std::string path_;
  struct stat status_ {};
  bool known_;
};

/// A name that is free for a moment: what has it now stands aside meanwhile. What is opened by the name and then loses
/// it keeps it in /proc/PID/fd, with " (deleted)".
class FreeName {
 public:
  explicit FreeName(const std::string& path) : path_(path), aside_(path + ".godwit") {
    struct stat status {};
    if (::lstat(path_.c_str(), &status) < 0) return;
    moved_ = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, aside_.c_str(), RENAME_NOREPLACE) == 0;
    // A directory of the lower layer can't be renamed.
    if (!moved_) std::swap(path_, aside_);
  }
  ~FreeName() {
    if (moved_) ::renameat2(AT_FDCWD, aside_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  }
  FreeName(const FreeName&) = delete;
  FreeName& operator=(const FreeName&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_, aside_;
  bool moved_ = false;
};

/// The description that O_TMPFILE gave: F_GETFL tells it from all others, and its file can be given a name by linkat.
struct TemporaryFiles {
  std::map<std::uint64_t, Fd> of;
};

Result<Fd> make_temporary(const State& state, const std::string& parent, Destination& destination) {
  const bool own = (state.flags & temporary_flag) != 0;
  const int flags = own ? (open_flags(state.flags) & ~(O_NOFOLLOW | O_DIRECTORY)) : O_RDWR;
  Fd made{::open(parent.c_str(), O_TMPFILE | flags | O_CLOEXEC, 0600)};
  if (!made) return fail_errno("make a file without a name in {}", parent);
  Fd file = TRY(reopen(made.get(), O_RDWR));
  destination.shared<TemporaryFiles>("temporary-files").of[state.key] = std::move(made);
  return file;
}

Result<Fd> make_unlinked(const std::string& wanted) {
  const FreeName free(wanted);
  const auto& path = free.path();
  Fd fd{::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600)};
  if (!fd) return fail_errno("make {}", path);
  if (::unlink(path.c_str()) < 0) return fail_errno("unlink {}", path);
  return fd;
}

/// A file or directory that has no name any more, under the name it had.
Result<Fd> make_nameless(const State& state, Destination& destination) {
  const std::string parent = parent_of(state.path);
  const Untouched untouched(parent);
  const auto wanted = (std::filesystem::path(parent) / std::filesystem::path(state.path).filename()).string();
  if (S_ISDIR(state.mode)) {
    const FreeName free(wanted);
    const auto& path = free.path();
    if (::mkdir(path.c_str(), 0700) < 0) return fail_errno("make the directory {}", path);
    Fd fd{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
    if (!fd) return fail_errno("open {}", path);
    TRY(set_metadata(fd.get(), state));
    if (::rmdir(path.c_str()) < 0) return fail_errno("rmdir {}", path);
    return fd;
  }
  Fd fd = state.temporary ? TRY(make_temporary(state, parent, destination)) : TRY(make_unlinked(wanted));
  TRY(write_content(fd.get(), state.content));
  TRY(set_metadata(fd.get(), state));
  return fd;
}

/// A file in a file system that lives in memory, where its tree is empty here or was filled before.
Result<Fd> make_named(const State& state) {
  const auto path = std::filesystem::path(state.path).lexically_normal();
  const auto parent = path.parent_path();
  TRY(check_in_memory(parent));
  std::error_code problem;
  std::filesystem::create_directories(parent, problem);
  Fd fd{::open(path.c_str(), O_CREAT | O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600)};
  struct stat status {};
  struct statfs system {};
  if (!fd || ::fstat(fd.get(), &status) < 0 || ::fstatfs(fd.get(), &system) < 0)
    return fail_errno("make {}", state.path);
  if (!S_ISREG(status.st_mode) || !is_in_memory(system.f_type))
    return fail(ErrorKind::refused, "{} is something else here than a file in memory", state.path);
  TRY(write_content(fd.get(), state.content));
  TRY(set_metadata(fd.get(), state));
  return fd;
}

/// Opens by the name that was removed, which is another one of the same file for that moment.
Result<Fd> open_as_before(const State& state) {
  const Untouched untouched(parent_of(state.opened_as));
  const FreeName free(state.opened_as);
  const auto& name = free.path();
  if (::link(state.path.c_str(), name.c_str()) < 0) return fail_errno("link {} to {}", name, state.path);
  Fd path{::open(name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  if (!path) return fail_errno("open {}", name);
  if (::unlink(name.c_str()) < 0) return fail_errno("unlink {}", name);
  return path;
}

/// An O_PATH descriptor is this one itself. No link in it is followed: the kernel gave us the name that it had found.
Result<Fd> open_named(const State& state) {
  const bool path_only = (state.flags & O_PATH) != 0;
  const int how = path_only ? state.flags & (O_DIRECTORY | O_NOFOLLOW) : O_NOFOLLOW;
  Fd path;
  if (state.opened_as.starts_with("/"))
    path = TRY(open_as_before(state));
  else
    path.reset(::open(state.path.c_str(), O_PATH | how | O_CLOEXEC));
  struct stat status {};
  if (!path || ::fstat(path.get(), &status) < 0) return fail_errno("open {}", state.path);
  if ((status.st_mode & S_IFMT) != (state.mode & S_IFMT))
    return fail(ErrorKind::failed, "{} is of another type here", state.path);
  if (state.carrier == "root" && S_ISREG(status.st_mode) && static_cast<std::uint64_t>(status.st_size) != state.size)
    return fail(ErrorKind::failed, "{} has {} bytes here, {} at the source", state.path, status.st_size, state.size);
  return path;
}

Result<int> find_object(const State& state, Destination& destination) {
  auto& objects = destination.shared<MemoryObjects>("memory-objects").objects;
  auto object = objects.find(state.key);
  if (object == objects.end()) {
    if (S_ISREG(state.mode) && !state.has_content)
      return fail(ErrorKind::invalid, "{} came without its content", state.path);
    object =
        objects.emplace(state.key, TRY(state.deleted ? make_nameless(state, destination) : make_named(state))).first;
  } else if (state.deleted && S_ISREG(state.mode) && !state.has_content) {
    // The memory engine has made it, and knows its content only.
    TRY(set_metadata(object->second.get(), state));
  }
  return object->second.get();
}

Result<Fd> open_again(const State& state, int inode, int flags, Destination& destination) {
  if (state.temporary && (state.flags & temporary_flag) != 0) {
    auto& made = destination.shared<TemporaryFiles>("temporary-files").of;
    const auto at = made.find(state.key);
    constexpr int own = O_ACCMODE | temporary_flag;
    if (at != made.end() && (::fcntl(at->second.get(), F_GETFL) & own) == (state.flags & own)) {
      Fd fd = std::move(at->second);
      made.erase(at);
      TRY(set_status_flags(fd.get(), state.flags));
      return fd;
    }
  }
  return reopen(inode, flags);
}

Result<Fd> build(const State& state, Destination& destination) {
  if (!state.path.starts_with("/") || state.path.size() >= PATH_MAX)
    return fail(ErrorKind::invalid, "a file whose path is \"{}\"", state.path);
  // All others have kinds of their own. To open a FIFO or a device may take for ever.
  if ((state.flags & O_PATH) == 0 && !S_ISREG(state.mode) && !S_ISDIR(state.mode))
    return fail(ErrorKind::invalid, "{}: mode {:#o} of a file", state.path, state.mode);
  const bool nameless = state.deleted || (state.carrier == "state" && S_ISREG(state.mode));
  Fd named;
  if (!nameless) TRY(check_permission(destination.opener(), state.path, state.flags));
  if (!nameless) named = TRY(open_named(state));
  const int inode = nameless ? TRY(find_object(state, destination)) : named.get();
  // O_TMPFILE contains O_DIRECTORY; what O_PATH opens isn't opened again.
  int flags = open_flags(state.flags) & ~O_NOFOLLOW;
  if ((state.flags & temporary_flag) != 0) flags &= ~O_DIRECTORY;
  if ((flags & O_PATH) != 0 && !nameless) return named;
  Fd fd = TRY(open_again(state, inode, flags, destination));
  if ((flags & O_PATH) != 0) return fd;
  if (S_ISDIR(state.mode) && state.carrier != "kernel") {
    if (state.reading.at_end || !state.reading.names.empty()) TRY(seek_position(fd.get(), state.reading));
  } else if (state.position != 0 && ::lseek(fd.get(), state.position, SEEK_SET) < 0) {
    return fail_errno("position {} in {}", state.position, state.path);
  }
  TRY(take_locks(state.locks, fd.get()));
  return fd;
}

Result<void> attach(const State& state, const Holder& holder, kernel::Batch& batch, Destination&) {
  take_process_locks(state.locks, holder, batch);
  return {};
}

}  // namespace

Result<Fd> make_deleted_file(const std::string& path) {
  const std::string parent = parent_of(path);
  const Untouched untouched(parent);
  return make_unlinked((std::filesystem::path(parent) / std::filesystem::path(path).filename()).string());
}

const Kind file_kind{.name = "file",
                     .matches = matches,
                     .preflight = preflight,
                     .capture = captures<State, capture>,
                     .build = builds<State, build>,
                     .attach = attaches<State, attach>,
                     .open = nothing_to_open};

}  // namespace godwit::objects
