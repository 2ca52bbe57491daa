#include "pod/manifest.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <mutex>

#include "base/fd.hpp"

namespace godwit::pod {
namespace {

constexpr std::int64_t second = 1'000'000'000;
constexpr std::int64_t clock_grain = 20'000'000;
constexpr std::size_t largest_cache = 64 * MiB;
constexpr std::size_t most_cached = 200'000;

std::int64_t nanoseconds(const struct timespec& time) {
  return time.tv_sec * second + time.tv_nsec;
}

/// A name in the pod's root, whose own links lead nowhere else.
Result<Fd> open_in(int root, const std::string& path, std::uint64_t flags) {
  struct open_how how {};
  how.flags = flags | O_CLOEXEC | O_NOFOLLOW;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  Fd fd{static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how))};
  if (!fd) return fail_errno("open {}", path);
  return fd;
}

Result<Fd> open_root(const std::string& root) {
  Fd fd{::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return fail_errno("open {}", root);
  return fd;
}

ManifestEntry entry_of(const std::string& path, const struct stat& status) {
  return {.path = path,
          .size = static_cast<std::uint64_t>(status.st_size),
          .mode = status.st_mode,
          .uid = status.st_uid,
          .gid = status.st_gid,
          .modified = nanoseconds(status.st_mtim)};
}

/// What can be told without reading; empty when it is the same.
std::string differs(const ManifestEntry& there, const ManifestEntry& here) {
  if ((there.mode & S_IFMT) != (here.mode & S_IFMT)) return "is of another type here";
  if (S_ISREG(there.mode) && there.size != here.size)
    return fmt::format("has {} bytes here, {} at the source", here.size, there.size);
  if (there.mode != here.mode)
    return fmt::format("has mode {:04o} here, {:04o} at the source", here.mode & 07777, there.mode & 07777);
  if (there.uid != here.uid || there.gid != here.gid)
    return fmt::format("belongs to {}:{} here, to {}:{} at the source", here.uid, here.gid, there.uid, there.gid);
  return {};
}

Result<std::vector<std::uint8_t>> hash_file(int fd, const std::string& path) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1)
    return fail(ErrorKind::failed, "begin a SHA-256");
  std::vector<std::uint8_t> buffer(MiB);
  for (off_t at = 0;;) {
    const ssize_t got = ::pread(fd, buffer.data(), buffer.size(), at);
    if (got < 0) return fail_errno("read {}", path);
    if (got == 0) break;
    at += got;
    if (EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(got)) != 1)
      return fail(ErrorKind::failed, "SHA-256 of {}", path);
  }
  std::vector<std::uint8_t> hash(32);
  if (EVP_DigestFinal_ex(context.get(), hash.data(), nullptr) != 1)
    return fail(ErrorKind::failed, "SHA-256 of {}", path);
  return hash;
}

}  // namespace

HashCache HashCache::load(std::string path) {
  HashCache cache;
  cache.path_ = std::move(path);
  const Fd file{::open(cache.path_.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) < 0 || status.st_size > static_cast<off_t>(largest_cache)) return cache;
  Bytes bytes(static_cast<std::size_t>(status.st_size));
  if (::pread(file.get(), bytes.data(), bytes.size(), 0) != status.st_size) return cache;
  auto lines = image::unpack<std::vector<Line>>(bytes);
  if (!lines) return cache;
  for (auto& line : *lines)
    if (line.sha256.size() == 32) cache.known_.emplace(line.key, std::move(line.sha256));
  return cache;
}

Result<void> HashCache::save() {
  if (!changed_) return {};
  std::vector<Line> lines;
  for (const auto& [key, hash] : known_) lines.push_back({key, hash});
  const Bytes bytes = image::pack(lines);
  const std::string next = path_ + ".new";
  // Migrations have a cache each, and one file for all of them.
  static std::mutex saving;
  const std::lock_guard one_at_a_time(saving);
  const Fd file{::open(next.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (!file) return fail_errno("create {}", next);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t put = ::write(file.get(), bytes.data() + done, bytes.size() - done);
    if (put < 0) return fail_errno("write {}", next);
    done += static_cast<std::size_t>(put);
  }
  if (::rename(next.c_str(), path_.c_str()) < 0) return fail_errno("rename {}", next);
  changed_ = false;
  return {};
}

Result<std::vector<std::uint8_t>> HashCache::sha256(int fd, const std::string& path) {
  struct stat before {
  }, after{};
  if (::fstat(fd, &before) < 0) return fail_errno("fstat {}", path);
  const Key key{.device = before.st_dev,
                .inode = before.st_ino,
                .size = static_cast<std::uint64_t>(before.st_size),
                .changed = nanoseconds(before.st_ctim)};
  const auto at = known_.find(key);
  if (at != known_.end()) return at->second;
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  auto hash = TRY(hash_file(fd, path));
  ++hashed_;
  if (::fstat(fd, &after) < 0) return fail_errno("fstat {}", path);
  const bool steady = nanoseconds(after.st_ctim) == key.changed && key.changed < nanoseconds(now) - clock_grain;
  if (steady) {
    // Simple and rare: files of the node's root don't change, so this many means that the disk was replaced.
    if (known_.size() >= most_cached) known_.clear();
    known_.emplace(key, hash);
    changed_ = true;
  }
  return hash;
}

Result<std::vector<ManifestEntry>> describe(const std::string& root, const std::vector<std::string>& paths,
                                            HashCache& cache) {
  const Fd directory = TRY(open_root(root));
  std::vector<ManifestEntry> entries;
  for (const auto& path : paths) {
    Fd fd = TRY(open_in(directory.get(), path, O_PATH));
    struct stat status {};
    if (::fstat(fd.get(), &status) < 0) return fail_errno("fstat {}", path);
    auto entry = entry_of(path, status);
    if (S_ISREG(status.st_mode)) {
      fd = TRY(open_in(directory.get(), path, O_RDONLY | O_NONBLOCK));
      entry.sha256 = TRY(cache.sha256(fd.get(), path));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::vector<ManifestDifference>> compare(const std::string& root, const std::vector<ManifestEntry>& entries,
                                                HashCache& cache) {
  const Fd directory = TRY(open_root(root));
  std::vector<ManifestDifference> differences;
  for (const auto& entry : entries) {
    auto fd = open_in(directory.get(), entry.path, O_PATH);
    struct stat status {};
    if (!fd || ::fstat(fd->get(), &status) < 0) {
      const int code = fd ? errno : fd.error().code;
      differences.push_back({entry.path, code == ENOENT || code == ENOTDIR ? "is missing" : std::strerror(code)});
      continue;
    }
    if (auto reason = differs(entry, entry_of(entry.path, status)); !reason.empty()) {
      differences.push_back({entry.path, std::move(reason)});
      continue;
    }
    if (!S_ISREG(status.st_mode)) continue;
    const Fd file = TRY(open_in(directory.get(), entry.path, O_RDONLY | O_NONBLOCK));
    if (TRY(cache.sha256(file.get(), entry.path)) != entry.sha256)
      differences.push_back({entry.path, "has another content"});
  }
  return differences;
}

Result<std::vector<std::string>> changed_since(const std::string& root, const std::vector<ManifestEntry>& entries) {
  const Fd directory = TRY(open_root(root));
  std::vector<std::string> changed;
  for (const auto& entry : entries) {
    const auto fd = open_in(directory.get(), entry.path, O_PATH);
    struct stat status {};
    const bool same = fd && ::fstat(fd->get(), &status) == 0 && differs(entry, entry_of(entry.path, status)).empty() &&
                      nanoseconds(status.st_mtim) == entry.modified;
    if (!same) changed.push_back(entry.path);
  }
  return changed;
}

}  // namespace godwit::pod
