#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>

#include "kernel/capabilities.hpp"
#include "pod/upper.hpp"
#include "pod/upper_record.hpp"

namespace godwit::pod {
namespace {

constexpr std::uint64_t largest_file = std::uint64_t{1} << 56;
constexpr int deepest = 1024;

/// A relative path of plain names. "" is the layer's own directory.
bool is_plain(const std::string& path) {
  if (path.size() >= PATH_MAX || path.find('\0') != std::string::npos) return false;
  if (path.empty()) return true;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string_view name = std::string_view(path).substr(at, end - at);
    if (name.empty() || name == "." || name == ".." || name.size() > NAME_MAX) return false;
    at = end + 1;
  }
  return true;
}

/// Whether `path` is `directory` or in it.
bool is_within(std::string_view path, std::string_view directory) {
  return path.starts_with(directory) && (path.size() == directory.size() || path[directory.size()] == '/');
}

/// Removes an entry of an open directory with all that is in it. What isn't there is removed already.
Result<void> remove_entry(int directory, const char* name, int depth = 0) {
  if (depth > deepest) return fail(ErrorKind::invalid, "directories {} deep", depth);
  if (::unlinkat(directory, name, 0) == 0 || errno == ENOENT) return {};
  if (errno != EISDIR && errno != EPERM) return fail_errno("remove {} from the upper layer", name);
  const int below = ::openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (below < 0) return fail_errno("open {} to remove it", name);
  DIR* stream = ::fdopendir(below);
  if (!stream) {
    ::close(below);
    return fail_errno("read {} to remove it", name);
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> closing(stream, ::closedir);
  for (const struct dirent64* entry; (entry = ::readdir64(stream)) != nullptr;) {
    const std::string_view each(entry->d_name);
    if (each != "." && each != "..") TRY(remove_entry(below, entry->d_name, depth + 1));
  }
  if (::unlinkat(directory, name, AT_REMOVEDIR) < 0) return fail_errno("remove the directory {}", name);
  return {};
}

}  // namespace

struct UpperTarget::Parts {
  Fd directory;
  Kind kind = Kind::layer;
  UpperRights rights;
  /// In an overlay: what this arrival has made. All else in it shows through from the node's root.
  std::set<std::string> made;
  std::size_t made_bytes = 0;
  std::string parent_path;  ///< the directory that was used last
  Fd parent;
  std::string file_path;  ///< the file that was written last
  Fd file;

  [[nodiscard]] bool has(int capability) const {
    return rights.user.is_root() && (rights.capabilities & kernel::capability(capability)) != 0;
  }
  [[nodiscard]] bool is_made(const std::string& path) const { return kind == Kind::layer || made.contains(path); }
  [[nodiscard]] bool may_change(const struct stat& directory, const UpperRecord&) const;
  [[nodiscard]] Result<void> check_made(const std::string& path) const;
  Result<void> note_made(const std::string& path);
  void note_removed(const std::string& path);
  Result<int> parent_of(const std::string& path);
  Result<void> clear(int in, const std::string& path);
  Result<void> apply(const UpperRecord&);
  Result<void> make(const UpperRecord&);
  Result<void> make_regular(const UpperRecord&, int in, const char* name, bool there);
  Result<void> write(const UpperRecord&);
  Result<void> link(const UpperRecord&);
  Result<void> remove(const UpperRecord&);
  Result<void> seal(const UpperRecord&);
  Result<void> set_owner_and_mode(const UpperRecord&, int fd, const struct stat& status);
  Result<void> set_attributes(const UpperRecord&, const std::string& through);
  void forget() {
    parent.reset();
    file.reset();
  }
};

namespace {

const char* name_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return path.c_str() + (slash == std::string::npos ? 0 : slash + 1);
}

}  // namespace

/// Whether the pod itself could give a directory of the node's root the owner and mode that are sent. With CAP_SETUID
/// its programs can be the owner, whoever that is.
bool UpperTarget::Parts::may_change(const struct stat& directory, const UpperRecord& record) const {
  const auto& user = rights.user;
  const bool owns = directory.st_uid == user.uid || has(CAP_FOWNER) || has(CAP_SETUID);
  const bool member = record.gid == user.gid || std::ranges::count(user.groups, record.gid) > 0 || has(CAP_SETGID);
  const bool keeps = record.uid == directory.st_uid && (record.gid == directory.st_gid || member);
  return owns && (keeps || has(CAP_CHOWN));
}

Result<void> UpperTarget::Parts::check_made(const std::string& path) const {
  if (is_made(path)) return {};
  return fail(ErrorKind::refused,
              "{}: this node's own, or not there: files of the pod can replace it, and can't change it or link to it",
              path);
}

Result<void> UpperTarget::Parts::note_made(const std::string& path) {
  if (kind == Kind::layer || !made.insert(path).second) return {};
  made_bytes += path.size();
  // Renamed files have both names for a moment.
  if (made.size() > 2 * most_upper_entries || made_bytes > 2 * most_upper_path_bytes)
    return fail(ErrorKind::refused, "an upper layer with {} files and {} MiB of paths", made.size(), made_bytes / MiB);
  return {};
}

void UpperTarget::Parts::note_removed(const std::string& path) {
  const auto erase = [this](auto from, auto to) {
    for (auto at = from; at != to; ++at) made_bytes -= at->size();
    made.erase(from, to);
  };
  erase(made.lower_bound(path), made.upper_bound(path));
  erase(made.lower_bound(path + '/'), made.lower_bound(path + static_cast<char>('/' + 1)));
}

Result<int> UpperTarget::Parts::parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  std::string wanted = slash == std::string::npos ? "" : path.substr(0, slash);
  if (!parent || wanted != parent_path) {
    parent = TRY(open_below(directory.get(), wanted, O_PATH | O_DIRECTORY));
    parent_path = std::move(wanted);
  }
  return parent.get();
}

/// Removes what stands at `path`, whosever it is, with all that is in it.
Result<void> UpperTarget::Parts::clear(int in, const std::string& path) {
  // What covers the hidden directory would go with it.
  if (!rights.hidden.empty() && is_within(rights.hidden, path))
    return fail(ErrorKind::refused, "{}: this node's state directory /{} is in it", path, rights.hidden);
  note_removed(path);
  file.reset();
  return remove_entry(in, name_of(path));
}

Result<void> UpperTarget::Parts::make_regular(const UpperRecord& record, int in, const char* name, bool there) {
  file.reset();
  if (there) {
    TRY(check_made(record.path));
    file = TRY(open_below(directory.get(), record.path, O_WRONLY | O_NONBLOCK));
  } else {
    file.reset(::openat(in, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file) return fail_errno("make {}", record.path);
    TRY(note_made(record.path));
  }
  file_path = record.path;
  if (::ftruncate(file.get(), static_cast<off_t>(record.size)) < 0)
    return fail_errno("give {} its {} bytes", record.path, record.size);
  return {};
}

Result<void> UpperTarget::Parts::make(const UpperRecord& record) {
  if (record.path.empty()) return fail(ErrorKind::invalid, "the upper layer can't make itself");
  if (record.size > largest_file) return fail(ErrorKind::invalid, "{}: {} bytes", record.path, record.size);
  const int in = TRY(parent_of(record.path));
  const char* name = name_of(record.path);
  struct stat status {};
  bool there = ::fstatat(in, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
  const bool keeps = there && !record.fresh && (status.st_mode & S_IFMT) == (record.mode & S_IFMT) &&
                     (S_ISDIR(record.mode) || S_ISREG(record.mode));
  if (there && !keeps) {
    TRY(clear(in, record.path));
    there = false;
  }
  switch (record.mode & S_IFMT) {
    case S_IFDIR:
      // In an overlay, a directory made where another was removed hides that one: it becomes opaque by itself.
      if (there) return {};
      if (::mkdirat(in, name, 0700) < 0) return fail_errno("make the directory {}", record.path);
      return note_made(record.path);
    case S_IFREG:
      return make_regular(record, in, name, there);
    case S_IFLNK:
      if (record.target.empty() || record.target.size() >= PATH_MAX || record.target.find('\0') != std::string::npos)
        return fail(ErrorKind::invalid, "{}: a symbolic link to {} bytes", record.path, record.target.size());
      if (::symlinkat(record.target.c_str(), in, name) < 0) return fail_errno("make the link {}", record.path);
      return note_made(record.path);
    case S_IFCHR:
      // A whiteout: in an overlay it comes of the removal above.
      if (record.device == 0 && kind == Kind::overlay) return {};
      [[fallthrough]];
    case S_IFBLK:
      if (!has(CAP_MKNOD) && record.device != 0)
        return fail(ErrorKind::refused, "{}: a device, which this pod has no right to make", record.path);
      [[fallthrough]];
    case S_IFIFO:
    case S_IFSOCK:
      if (::mknodat(in, name, (record.mode & S_IFMT) | 0600, record.device) < 0)
        return fail_errno("make the node {}", record.path);
      return note_made(record.path);
    default:
      return fail(ErrorKind::invalid, "{}: mode {:#o}", record.path, record.mode);
  }
}

Result<void> UpperTarget::Parts::write(const UpperRecord& record) {
  const bool zero = record.action == "zero";
  const std::uint64_t size = zero ? record.size : record.bytes.size();
  if (record.offset > largest_file || size > largest_file)
    return fail(ErrorKind::invalid, "{}: too large", record.path);
  if (!file || file_path != record.path) {
    TRY(check_made(record.path));
    file = TRY(open_below(directory.get(), record.path, O_WRONLY | O_NONBLOCK));
    file_path = record.path;
    struct stat status {};
    if (::fstat(file.get(), &status) < 0 || !S_ISREG(status.st_mode)) {
      file.reset();
      return fail(ErrorKind::invalid, "{}: content for what is no file", record.path);
    }
  }
  if (zero) {
    // A hole where the file system can; elsewhere zeros are written out.
    const auto offset = static_cast<off_t>(record.offset);
    if (::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(size)) == 0)
      return {};
    if (errno != EOPNOTSUPP) return fail_errno("punch a hole into {}", record.path);
    if (size > upper_block) return fail(ErrorKind::invalid, "{}: {} bytes of zeros", record.path, size);
  }
  const std::vector<std::uint8_t> zeros(zero ? size : 0);
  const auto& bytes = zero ? zeros : record.bytes;
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t put =
        ::pwrite(file.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(record.offset + done));
    if (put < 0) return fail_errno("write {} bytes to {}", bytes.size(), record.path);
    done += static_cast<std::size_t>(put);
  }
  return {};
}

Result<void> UpperTarget::Parts::link(const UpperRecord& record) {
  if (!is_plain(record.target) || record.target.empty() || record.path.empty())
    return fail(ErrorKind::invalid, "a hard link from \"{}\" to \"{}\"", record.path, record.target);
  TRY(check_made(record.target));
  const Fd target = TRY(open_below(directory.get(), record.target, O_PATH));
  struct stat status {};
  if (::fstat(target.get(), &status) < 0 || !S_ISREG(status.st_mode))
    return fail(ErrorKind::invalid, "{}: a hard link to what is no file", record.path);
  const std::size_t slash = record.target.rfind('/');
  const Fd from = TRY(open_below(directory.get(), slash == std::string::npos ? "" : record.target.substr(0, slash),
                                 O_PATH | O_DIRECTORY));
  const int in = TRY(parent_of(record.path));
  TRY(clear(in, record.path));
  if (::linkat(from.get(), name_of(record.target), in, name_of(record.path), 0) < 0)
    return fail_errno("link {} to {}", record.path, record.target);
  return note_made(record.path);
}

Result<void> UpperTarget::Parts::remove(const UpperRecord& record) {
  if (record.path.empty()) return fail(ErrorKind::invalid, "the upper layer can't remove itself");
  const auto in = parent_of(record.path);
  if (!in) {
    // Gone with its directory already.
    if (in.error().code == ENOENT || in.error().code == ENOTDIR) return {};
    return std::unexpected(in.error());
  }
  TRY(clear(*in, record.path));
  forget();
  return {};
}

Result<void> UpperTarget::Parts::set_attributes(const UpperRecord& record, const std::string& through) {
  std::array<char, 64 * KiB> names;
  const ssize_t length = ::listxattr(through.c_str(), names.data(), names.size());
  if (length < 0 && errno != EOPNOTSUPP) return fail_errno("attributes of {}", record.path);
  for (ssize_t at = 0; at < length;) {
    const std::string name(names.data() + at);
    at += static_cast<ssize_t>(name.size()) + 1;
    if (!travels(name) || record.attributes.contains(name) || name.starts_with("security.selinux")) continue;
    if (::removexattr(through.c_str(), name.c_str()) < 0 && errno != ENODATA)
      return fail_errno("remove attribute {} of {}", name, record.path);
  }
  for (const auto& [name, value] : record.attributes) {
    if (name.empty() || name.size() > XATTR_NAME_MAX || value.size() > 64 * KiB || !travels(name))
      return fail(ErrorKind::invalid, "{}: attribute {} of {} bytes", record.path, name, value.size());
    // The overlay keeps its other marks itself: we have done what they say through it.
    if (kind == Kind::overlay && name.starts_with("trusted.overlay.")) continue;
    if (::setxattr(through.c_str(), name.c_str(), value.data(), value.size(), 0) < 0)
      return fail_errno("set attribute {} of {}", name, record.path);
  }
  return {};
}

Result<void> UpperTarget::Parts::set_owner_and_mode(const UpperRecord& record, int fd, const struct stat& status) {
  if (::fchownat(fd, "", record.uid, record.gid, AT_EMPTY_PATH) < 0) return fail_errno("owner of {}", record.path);
  if (S_ISLNK(status.st_mode)) return {};
  const std::string through = fmt::format("/proc/self/fd/{}", fd);
  if (::chmod(through.c_str(), record.mode & 07777) < 0) return fail_errno("mode of {}", record.path);
  const bool whiteout = S_ISCHR(status.st_mode) && status.st_rdev == 0;
  return whiteout ? Result<void>{} : set_attributes(record, through);
}

Result<void> UpperTarget::Parts::seal(const UpperRecord& record) {
  if (kind == Kind::overlay && record.attributes.contains("trusted.overlay.redirect"))
    return fail(ErrorKind::refused, "{}: a directory of the node's root that the pod has renamed", record.path);
  if (kind == Kind::overlay && S_ISCHR(record.mode)) {
    const auto in = parent_of(record.path);
    struct stat status {};
    // A whiteout stands for a name that isn't there.
    if (in && ::fstatat(*in, name_of(record.path), &status, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT) return {};
  }
  const Fd fd = TRY(open_below(directory.get(), record.path, O_PATH));
  struct stat status {};
  if (::fstat(fd.get(), &status) < 0) return fail_errno("fstat {}", record.path);
  if (!S_ISDIR(status.st_mode)) TRY(check_made(record.path));
  // A copy of a directory is in the pod's layer as soon as something in it is. What the pod can't have changed is the
  // source's own, and stays this node's own here; the times are those of what the pod has done in it.
  if (is_made(record.path) || may_change(status, record)) TRY(set_owner_and_mode(record, fd.get(), status));
  const struct timespec times[2] = {{.tv_sec = record.accessed, .tv_nsec = record.accessed_ns},
                                    {.tv_sec = record.modified, .tv_nsec = record.modified_ns}};
  if (::utimensat(fd.get(), "", times, AT_EMPTY_PATH) < 0) return fail_errno("times of {}", record.path);
  return {};
}

Result<void> UpperTarget::Parts::apply(const UpperRecord& record) {
  if (!is_plain(record.path)) return fail(ErrorKind::invalid, "upper layer: a path that leads elsewhere");
  if (!rights.hidden.empty() && is_within(record.path, rights.hidden))
    return fail(ErrorKind::refused, "{}: in this node's state directory", record.path);
  if (record.action == "data" || record.action == "zero") return write(record);
  if (record.action == "seal") return seal(record);
  if (record.action == "make") return make(record);
  if (record.action == "link") return link(record);
  if (record.action == "remove") return remove(record);
  return fail(ErrorKind::invalid, "upper layer: unknown action");
}

Result<UpperTarget> UpperTarget::open(const std::string& directory, Kind kind) {
  const Fd fd{::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return fail_errno("open the upper layer {}", directory);
  return open(fd.get(), kind);
}

Result<UpperTarget> UpperTarget::open(int directory, Kind kind, UpperRights rights) {
  auto parts = std::make_unique<Parts>();
  parts->directory.reset(::fcntl(directory, F_DUPFD_CLOEXEC, 0));
  if (!parts->directory) return fail_errno("duplicate the upper layer's descriptor");
  parts->kind = kind;
  if (rights.hidden.starts_with('/')) rights.hidden.erase(0, 1);
  if (kind == Kind::layer) rights.hidden.clear();
  parts->rights = std::move(rights);
  return UpperTarget(std::move(parts));
}

Result<void> UpperTarget::apply(BytesView message) {
  if (message.size() > 2 * largest_upper_message)
    return fail(ErrorKind::invalid, "upper layer: a message of {} bytes", message.size());
  // A record names each of its fields, so there are far fewer of them than bytes.
  const auto records = TRY(image::unpack<std::vector<UpperRecord>>(message, {.items = 65536}));
  for (const auto& record : records) TRY(parts_->apply(record));
  return {};
}

UpperTarget::UpperTarget(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
UpperTarget::UpperTarget(UpperTarget&&) noexcept = default;
UpperTarget& UpperTarget::operator=(UpperTarget&&) noexcept = default;
UpperTarget::~UpperTarget() = default;

}  // namespace godwit::pod
