#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>

#include "pod/upper.hpp"
#include "pod/upper_record.hpp"

namespace godwit::pod {
namespace {

constexpr int deepest = 512;
/// File systems stamp changes with a clock that moves once a tick: a change this short after another may look the same.
constexpr std::int64_t clock_grain = 20'000'000;
constexpr std::int64_t second = 1'000'000'000;

using Hash = std::array<std::uint8_t, 16>;
constexpr Hash zero_block{};

/// A keyed hash of blocks (GMAC) at memory speed. The key is ours alone, so a program can't prepare two blocks that
/// look the same to us.
class Hasher {
 public:
  Hasher() : context_(EVP_CIPHER_CTX_new()) {
    std::array<std::uint8_t, 16> key{};
    RAND_bytes(key.data(), key.size());
    EVP_EncryptInit_ex(context_, EVP_aes_128_gcm(), nullptr, key.data(), nullptr);
  }
  ~Hasher() { EVP_CIPHER_CTX_free(context_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  /// All zeros for a block of zeros.
  Result<Hash> of(BytesView block) {
    if (block.empty() || (block[0] == 0 && std::memcmp(block.data(), block.data() + 1, block.size() - 1) == 0))
      return zero_block;
    constexpr std::array<std::uint8_t, 12> nonce{};
    Hash hash{};
    int length = 0;
    if (EVP_EncryptInit_ex(context_, nullptr, nullptr, nullptr, nonce.data()) != 1 ||
        EVP_EncryptUpdate(context_, nullptr, &length, block.data(), static_cast<int>(block.size())) != 1 ||
        EVP_EncryptFinal_ex(context_, hash.data(), &length) != 1 ||
        EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_GCM_GET_TAG, hash.size(), hash.data()) != 1)
      return fail(ErrorKind::failed, "hash a block of a file");
    return hash;
  }

 private:
  EVP_CIPHER_CTX* context_;
};

struct Node {
  struct stat status {};
  bool settled = false;      ///< no change after this look can have left the times as they are
  bool opaque = false;       ///< a directory that hides the lower layer's
  std::vector<Hash> blocks;  ///< of a regular file: what the destination has
};

std::int64_t nanoseconds(const struct timespec& time) {
  return time.tv_sec * second + time.tv_nsec;
}
bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_ino == b.st_ino && (a.st_mode & S_IFMT) == (b.st_mode & S_IFMT) && a.st_rdev == b.st_rdev;
}
bool same(const struct stat& a, const struct stat& b) {
  return same_file(a, b) && a.st_mode == b.st_mode && a.st_uid == b.st_uid && a.st_gid == b.st_gid &&
         a.st_size == b.st_size && nanoseconds(a.st_mtim) == nanoseconds(b.st_mtim) &&
         nanoseconds(a.st_ctim) == nanoseconds(b.st_ctim);
}

using Tree = std::map<std::string, Node>;

/// Everything in the layer, parents before what is in them. A program can make paths that are longer than it could
/// write them, a directory at a time, and the whole path of each entry is kept: `path_bytes` counts them.
Result<void> walk(int directory, const std::string& path, std::int64_t now, int depth, Tree& tree,
                  std::size_t& path_bytes) {
  if (depth > deepest) return fail(ErrorKind::refused, "{}: directories {} deep", path, depth);
  DIR* stream = ::fdopendir(directory);
  if (!stream) {
    ::close(directory);
    return fail_errno("read the directory {}", path);
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> closing(stream, ::closedir);
  for (const struct dirent64* entry; (entry = ::readdir64(stream)) != nullptr;) {
    const std::string_view name(entry->d_name);
    if (name == "." || name == "..") continue;
    Node node;
    // Removed since it was listed: the next pass sees it so.
    if (::fstatat(directory, entry->d_name, &node.status, AT_SYMLINK_NOFOLLOW) < 0) continue;
    node.settled = nanoseconds(node.status.st_ctim) < now - clock_grain;
    std::string full = path.empty() ? std::string(name) : fmt::format("{}/{}", path, name);
    if (full.size() >= PATH_MAX)
      return fail(ErrorKind::refused, "{}…: a path of {} bytes, and one has at most {}", full.substr(0, 128),
                  full.size(), PATH_MAX - 1);
    path_bytes += full.size();
    const bool descend = S_ISDIR(node.status.st_mode);
    tree.emplace(full, std::move(node));
    if (tree.size() > most_upper_entries)
      return fail(ErrorKind::refused, "more than {} files in an upper layer", most_upper_entries);
    if (path_bytes > most_upper_path_bytes)
      return fail(ErrorKind::refused,
                  "the paths in an upper layer are more than {} MiB together: {} files in it so far",
                  most_upper_path_bytes / MiB, tree.size());
    if (!descend) continue;
    const int below = ::openat(directory, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below >= 0) TRY(walk(below, full, now, depth + 1, tree, path_bytes));
  }
  return {};
}

/// Collects records into messages.
class Sender {
 public:
  Sender(const UpperSink& sink, UpperPass& pass) : sink_(sink), pass_(pass) {}

  Result<void> send(UpperRecord record) {
    std::size_t size = 512 + record.path.size() + record.target.size() + record.bytes.size();
    for (const auto& [name, value] : record.attributes) size += name.size() + value.size() + 16;
    if (size > largest_upper_message) return fail(ErrorKind::refused, "{}: {} bytes of attributes", record.path, size);
    if (waiting_ + size > largest_upper_message) TRY(flush());
    waiting_ += size;
    records_.push_back(std::move(record));
    return {};
  }
  Result<void> flush() {
    if (records_.empty()) return {};
    const Bytes message = image::pack(records_);
    pass_.sent_bytes += message.size();
    records_.clear();
    waiting_ = 0;
    return sink_(message);
  }

 private:
  const UpperSink& sink_;
  UpperPass& pass_;
  std::vector<UpperRecord> records_;
  std::size_t waiting_ = 0;
};

}  // namespace

struct UpperSource::Parts {
  Fd directory;
  Node self;  ///< the layer's own directory
  Tree known;
  Hasher hasher;

  Result<void> mark_opaque(Tree& now);
  Result<void> send_content(Sender&, UpperPass&, const std::string& path, Node& node);
  Result<void> send_seal(Sender&, const std::string& path, const Node& node);
  Result<void> send_make(Sender&, const std::string& path, const Node& node, bool fresh);
};

namespace {

/// Blocks of one file, those that differ going out.
class Content {
 public:
  Content(Sender& sender, UpperPass& pass, const std::string& path, Node& node, Hasher& hasher)
      : sender_(sender), pass_(pass), path_(path), node_(node), hasher_(hasher) {}

  Result<void> block(std::size_t index, BytesView bytes) {
    const Hash hash = TRY(hasher_.of(bytes));
    if (node_.blocks[index] == hash) return {};
    node_.blocks[index] = hash;
    const std::uint64_t offset = index * upper_block;
    if (hash == zero_block) {
      TRY(flush());
      return sender_.send({.action = "zero", .path = path_, .size = bytes.size(), .offset = offset});
    }
    if (pending_.offset + pending_.bytes.size() != offset || pending_.bytes.size() >= upper_data) TRY(flush());
    if (pending_.bytes.empty()) pending_ = {.action = "data", .path = path_, .offset = offset};
    pending_.bytes.insert(pending_.bytes.end(), bytes.begin(), bytes.end());
    return {};
  }
  Result<void> flush() {
    if (pending_.bytes.empty()) return {};
    pass_.data_bytes += pending_.bytes.size();
    return sender_.send(std::exchange(pending_, {}));
  }

 private:
  Sender& sender_;
  UpperPass& pass_;
  const std::string& path_;
  Node& node_;
  Hasher& hasher_;
  UpperRecord pending_;
};

/// One more than the last block that has data, from `block` on; and the next block with data. Holes aren't read.
Result<std::pair<std::size_t, std::size_t>> next_data(int fd, std::size_t block, std::size_t blocks) {
  const off_t data = ::lseek(fd, static_cast<off_t>(block * upper_block), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return std::pair{blocks, blocks};
  if (data < 0) return fail_errno("SEEK_DATA");
  const off_t hole = ::lseek(fd, data, SEEK_HOLE);
  if (hole < 0) return fail_errno("SEEK_HOLE");
  const std::size_t first = static_cast<std::size_t>(data) / upper_block;
  const std::size_t end = (static_cast<std::size_t>(hole) + upper_block - 1) / upper_block;
  return std::pair{std::min(first, blocks), std::min(std::max(end, first + 1), blocks)};
}

}  // namespace

Result<void> UpperSource::Parts::send_content(Sender& sender, UpperPass& pass, const std::string& path, Node& node) {
  const auto size = static_cast<std::uint64_t>(node.status.st_size);
  const std::size_t blocks = (size + upper_block - 1) / upper_block;
  // What a file has grown by is a hole at the destination. A last block that was cut off or has grown differs by its
  // length, which is part of its hash, unless it is zero, and so it is there.
  node.blocks.resize(blocks, zero_block);
  const auto fd = open_below(directory.get(), path, O_RDONLY | O_NOATIME | O_NONBLOCK);
  if (!fd) {
    if (fd.error().code == ENOENT || fd.error().code == ELOOP) return {};  // gone since: the next pass
    return std::unexpected(fd.error());
  }
  struct stat status {};
  if (::fstat(fd->get(), &status) < 0) return fail_errno("fstat {}", path);
  if (!same_file(status, node.status)) return {};
  Content content(sender, pass, path, node, hasher);
  std::vector<std::uint8_t> buffer(16 * upper_block);
  std::size_t index = 0;
  while (index < blocks) {
    const auto [first, end] = TRY(next_data(fd->get(), index, blocks));
    for (; index < first; ++index) {
      const std::uint64_t offset = index * upper_block;
      if (node.blocks[index] == zero_block) continue;
      TRY(content.flush());
      node.blocks[index] = zero_block;
      TRY(sender.send({.action = "zero",
                       .path = path,
                       .size = std::min<std::uint64_t>(upper_block, size - offset),
                       .offset = offset}));
    }
    while (index < end) {
      const std::uint64_t offset = index * upper_block;
      const std::size_t wanted = std::min<std::uint64_t>({buffer.size(), (end - index) * upper_block, size - offset});
      const ssize_t got = ::pread(fd->get(), buffer.data(), wanted, static_cast<off_t>(offset));
      if (got < 0) return fail_errno("read {}", path);
      // Cut off while we read: zeros stand for it until the next pass, which sees the new size.
      std::fill(buffer.begin() + got, buffer.begin() + static_cast<std::ptrdiff_t>(wanted), 0);
      for (std::size_t at = 0; at < wanted; at += upper_block, ++index)
        TRY(content.block(index, BytesView(buffer).subspan(at, std::min(upper_block, wanted - at))));
    }
  }
  return content.flush();
}

Result<void> UpperSource::Parts::send_make(Sender& sender, const std::string& path, const Node& node, bool fresh) {
  UpperRecord record{
      .action = "make", .path = path, .mode = node.status.st_mode, .fresh = fresh, .opaque = node.opaque};
  if (S_ISREG(node.status.st_mode)) record.size = static_cast<std::uint64_t>(node.status.st_size);
  if (S_ISCHR(node.status.st_mode) || S_ISBLK(node.status.st_mode)) record.device = node.status.st_rdev;
  if (S_ISLNK(node.status.st_mode)) {
    const auto fd = open_below(directory.get(), path, O_PATH);
    if (!fd) return {};
    std::array<char, PATH_MAX> target{};
    const ssize_t length = ::readlinkat(fd->get(), "", target.data(), target.size());
    if (length < 0) return {};
    record.target.assign(target.data(), static_cast<std::size_t>(length));
  }
  return sender.send(std::move(record));
}

Result<void> UpperSource::Parts::send_seal(Sender& sender, const std::string& path, const Node& node) {
  const auto& status = node.status;
  UpperRecord record{.action = "seal",
                     .path = path,
                     .mode = status.st_mode,
                     .uid = status.st_uid,
                     .gid = status.st_gid,
                     .modified = status.st_mtim.tv_sec,
                     .modified_ns = status.st_mtim.tv_nsec,
                     .accessed = status.st_atim.tv_sec,
                     .accessed_ns = status.st_atim.tv_nsec};
  const auto fd = open_below(directory.get(), path, O_PATH);
  if (!fd) return {};
  auto attributes = read_attributes(fd->get());
  if (!attributes) return std::unexpected(std::move(attributes).error().within(path));
  record.attributes = std::move(*attributes);
  return sender.send(std::move(record));
}

Result<UpperSource> UpperSource::open(const std::string& directory) {
  auto parts = std::make_unique<Parts>();
  parts->directory.reset(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!parts->directory) return fail_errno("open the upper layer {}", directory);
  return UpperSource(std::move(parts));
}

namespace {

/// Keys of a tree: there can be many, and long ones.
using Paths = std::vector<std::reference_wrapper<const std::string>>;

/// What a pass does with each entry.
struct Plan {
  Paths directories, renamed, made, compared, linked, sealed, removed;
  std::map<std::string, std::string> targets;      ///< of `renamed` and `linked`
  std::unordered_map<ino_t, std::string> leaders;  ///< the name that content goes by, of files with several
};

bool is_regular(const Node& node) {
  return S_ISREG(node.status.st_mode);
}

/// The first name of each inode, best one that the destination has already: the others are links to it.
std::unordered_map<ino_t, std::string> first_names(const Tree& now, const Tree& known) {
  std::unordered_map<ino_t, std::string> names;
  std::unordered_map<ino_t, bool> there;
  for (const auto& [path, node] : now) {
    if (!is_regular(node) || node.status.st_nlink < 2) continue;
    const auto before = known.find(path);
    const bool has = before != known.end() && same_file(before->second.status, node.status);
    const auto [at, added] = names.emplace(node.status.st_ino, path);
    if (!added && has && !there[node.status.st_ino]) at->second = path;
    there[node.status.st_ino] |= has;
  }
  return names;
}

/// Files that stand under another name now: the destination has their content already.
std::unordered_map<ino_t, std::string> vanished_names(const Tree& now, const Tree& known) {
  std::unordered_map<ino_t, std::string> names;
  for (const auto& [path, node] : known) {
    if (!is_regular(node)) continue;
    const auto at = now.find(path);
    // A directory in its place is made before anything else.
    const bool gone =
        at == now.end() || (!same_file(at->second.status, node.status) && !S_ISDIR(at->second.status.st_mode));
    if (gone) names.emplace(node.status.st_ino, path);
  }
  return names;
}

Plan make_plan(Tree& now, const Tree& known, const std::set<std::string>& suspects) {
  Plan plan{.leaders = first_names(now, known)};
  const auto& first = plan.leaders;
  std::set<ino_t> suspected;
  for (const auto& path : suspects)
    if (const auto at = now.find(path); at != now.end()) suspected.insert(at->second.status.st_ino);
  const auto vanished = vanished_names(now, known);
  std::string removed_above;
  for (const auto& [path, node] : known) {
    if (now.contains(path)) continue;
    const bool within = !removed_above.empty() && path.starts_with(removed_above + "/");
    if (within) continue;
    removed_above = path;
    plan.removed.push_back(path);
  }
  for (auto& [path, node] : now) {
    const auto before = known.find(path);
    const bool kept = before != known.end() && same_file(before->second.status, node.status);
    if (kept) node.blocks = before->second.blocks;
    const bool unchanged = kept && before->second.settled && same(before->second.status, node.status);
    const bool suspect = is_regular(node) && suspected.contains(node.status.st_ino);
    if (unchanged && !suspect) continue;
    plan.sealed.push_back(path);
    if (S_ISDIR(node.status.st_mode)) {
      // A directory that only became another one keeps what is in it: that is compared by itself.
      plan.directories.push_back(path);
      continue;
    }
    if (!is_regular(node)) {
      if (!kept) plan.made.push_back(path);
      continue;
    }
    const auto leader = first.find(node.status.st_ino);
    const bool follows = leader != first.end() && leader->second != path;
    if (follows) {
      const auto there = known.find(leader->second);
      const bool leads = there != known.end() && same_file(there->second.status, node.status);
      if (kept && leads) continue;
      plan.linked.push_back(path);
      plan.targets[path] = leader->second;
      continue;
    }
    const auto old = vanished.find(node.status.st_ino);
    if (!kept && before == known.end() && old != vanished.end()) {
      plan.renamed.push_back(path);
      plan.targets[path] = old->second;
      node.blocks = known.at(old->second).blocks;
      plan.compared.push_back(path);
      continue;
    }
    (kept ? plan.compared : plan.made).push_back(path);
  }
  return plan;
}

}  // namespace

/// Notes which directories are opaque. One that has become so begins anew at the destination, so what was in it counts
/// as never sent.
Result<void> UpperSource::Parts::mark_opaque(Tree& now) {
  for (auto& [path, node] : now) {
    if (!S_ISDIR(node.status.st_mode)) continue;
    const auto before = known.find(path);
    const bool kept = before != known.end() && same_file(before->second.status, node.status);
    if (kept && before->second.settled && same(before->second.status, node.status)) {
      node.opaque = before->second.opaque;
      continue;
    }
    const auto fd = open_below(directory.get(), path, O_PATH);
    if (!fd) continue;
    node.opaque = TRY(read_attributes(fd->get())).contains(std::string(opaque_attribute));
    if (!node.opaque || (kept && before->second.opaque) || before == known.end()) continue;
    auto at = known.lower_bound(path + "/");
    while (at != known.end() && at->first.starts_with(path + "/")) at = known.erase(at);
    known.erase(path);
  }
  return {};
}

Result<UpperPass> UpperSource::pass(const UpperSink& sink, const std::set<std::string>& suspects) {
  const auto began = std::chrono::steady_clock::now();
  UpperPass result;
  Sender sender(sink, result);
  struct timespec clock {};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &clock);
  Tree now;
  const int top = ::openat(parts_->directory.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (top < 0) return fail_errno("open the upper layer");
  std::size_t path_bytes = 0;
  TRY(walk(top, "", nanoseconds(clock), 0, now, path_bytes));
  result.entries = now.size();
  TRY(parts_->mark_opaque(now));
  const Plan plan = make_plan(now, parts_->known, suspects);
  result.changed = plan.sealed.size();
  result.removed = plan.removed.size();

  for (const std::string& path : plan.directories) {
    const auto before = parts_->known.find(path);
    const bool hides = now.at(path).opaque && (before == parts_->known.end() || !before->second.opaque);
    TRY(parts_->send_make(sender, path, now.at(path), hides));
  }
  // Every directory stands. Nothing is lost yet, so that renamed files find what they were.
  for (const std::string& path : plan.renamed)
    TRY(sender.send({.action = "link", .path = path, .target = plan.targets.at(path)}));
  for (const std::string& path : plan.removed) TRY(sender.send({.action = "remove", .path = path}));
  for (const std::string& path : plan.made) {
    auto& node = now.at(path);
    node.blocks.clear();
    TRY(parts_->send_make(sender, path, node, true));
    if (is_regular(node)) TRY(parts_->send_content(sender, result, path, node));
  }
  for (const std::string& path : plan.compared) {
    auto& node = now.at(path);
    TRY(parts_->send_make(sender, path, node, false));
    TRY(parts_->send_content(sender, result, path, node));
  }
  // All content is there: what is left are further names, and what writing has touched.
  for (const std::string& path : plan.linked)
    TRY(sender.send({.action = "link", .path = path, .target = plan.targets.at(path)}));
  for (auto path = plan.sealed.rbegin(); path != plan.sealed.rend(); ++path)
    TRY(parts_->send_seal(sender, *path, now.at(*path)));
  Node self;
  if (::fstat(parts_->directory.get(), &self.status) < 0) return fail_errno("fstat of the upper layer");
  self.settled = nanoseconds(self.status.st_ctim) < nanoseconds(clock) - clock_grain;
  if (!parts_->self.settled || !same(self.status, parts_->self.status)) TRY(parts_->send_seal(sender, "", self));
  TRY(sender.flush());
  for (auto& [path, node] : now) {
    const auto leader = plan.leaders.find(node.status.st_ino);
    if (leader != plan.leaders.end() && leader->second != path && is_regular(node))
      node.blocks = now.at(leader->second).blocks;
  }
  parts_->self = std::move(self);
  parts_->known = std::move(now);
  result.took = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - began);
  return result;
}

UpperSource::UpperSource(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
UpperSource::UpperSource(UpperSource&&) noexcept = default;
UpperSource& UpperSource::operator=(UpperSource&&) noexcept = default;
UpperSource::~UpperSource() = default;

}  // namespace godwit::pod
