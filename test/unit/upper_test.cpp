#include "pod/upper.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/fd.hpp"
#include "pod/upper_record.hpp"

namespace godwit::pod {
namespace {

namespace fs = std::filesystem;

class Upper : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/godwit-upper-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base = name;
    fs::create_directory(base + "/from");
    fs::create_directory(base + "/to");
    source.emplace(UpperSource::open(base + "/from").value());
    target.emplace(UpperTarget::open(base + "/to").value());
  }
  void TearDown() override { fs::remove_all(base); }
  std::string from(const std::string& path = "") const { return base + "/from/" + path; }
  std::string to(const std::string& path = "") const { return base + "/to/" + path; }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(from(path)).parent_path());
    std::ofstream(from(path)) << text;
  }
  static std::string read(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  UpperPass pass(const std::set<std::string>& suspects = {}) {
    const auto result = source->pass(
        [&](BytesView message) {
          EXPECT_LE(message.size(), largest_upper_message);
          return target->apply(message);
        },
        suspects);
    EXPECT_TRUE(result) << result.error().message();
    return result.value_or(UpperPass{});
  }
  /// What can be seen of a tree from outside: the same on both sides, or something was lost.
  static std::map<std::string, std::string> describe(const std::string& top) {
    std::map<std::string, std::string> all;
    std::map<ino_t, std::string> names;
    std::set<fs::path> entries;  // in order: which name of a file is its first decides what is said of the others
    for (const auto& entry : fs::recursive_directory_iterator(top)) entries.insert(entry.path());
    for (const auto& entry : entries) {
      struct stat status {};
      EXPECT_EQ(::lstat(entry.c_str(), &status), 0);
      const std::string name = entry.lexically_relative(top);
      std::string text = fmt::format("{:o} {} {} {} {}.{}", status.st_mode, status.st_uid, status.st_gid,
                                     status.st_rdev, status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
      if (S_ISREG(status.st_mode)) {
        text += " " + std::to_string(status.st_size) + " " + std::to_string(std::hash<std::string>{}(read(entry)));
        text += " same as " + names.emplace(status.st_ino, name).first->second;
      }
      if (S_ISLNK(status.st_mode)) text += " -> " + fs::read_symlink(entry).string();
      if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) {
        const Fd fd{::open(entry.c_str(), O_PATH | O_CLOEXEC)};
        const auto attributes = read_attributes(fd.get()).value();
        for (const auto& [key, value] : attributes) text += " " + key + "=" + std::string(value.begin(), value.end());
      }
      all[name] = text;
    }
    return all;
  }
  void expect_equal() const { expect_equal(from(), to()); }
  static void expect_equal(const std::string& there, const std::string& here) {
    const auto a = describe(there), b = describe(here);
    for (const auto& [path, text] : a) {
      const auto at = b.find(path);
      EXPECT_EQ(text, at == b.end() ? "missing" : at->second) << path;
    }
    for (const auto& [path, text] : b) EXPECT_TRUE(a.contains(path)) << path << " should be gone";
  }
  /// As if all that was written so far were long ago, so that times tell what changed.
  void age() {
    for (const auto& entry : fs::recursive_directory_iterator(from())) {
      const timespec old[2] = {{1000000, 1}, {1000000, 1}};
      ::utimensat(AT_FDCWD, entry.path().c_str(), old, AT_SYMLINK_NOFOLLOW);
    }
    const timespec moment{.tv_sec = 0, .tv_nsec = 30'000'000};
    ::nanosleep(&moment, nullptr);  // ctime can't be set: let the clock's grain pass
  }

  std::string base;
  std::optional<UpperSource> source;
  std::optional<UpperTarget> target;
};

TEST_F(Upper, EveryTypeOfEntry) {
  write("etc/passwd", "root");
  write("empty", "");
  fs::create_symlink("../nowhere", from("etc/link"));
  ASSERT_EQ(::mkfifo(from("fifo").c_str(), 0620), 0);
  ASSERT_EQ(::mknod(from("etc/whiteout").c_str(), S_IFCHR | 0600, 0), 0);
  ASSERT_EQ(::mknod(from("null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  ASSERT_EQ(::mknod(from("socket").c_str(), S_IFSOCK | 0755, 0), 0);
  fs::create_directories(from("opaque/deep/er"));
  ASSERT_EQ(::setxattr(from("opaque").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  ASSERT_EQ(::setxattr(from("etc/passwd").c_str(), "user.note", "kept", 4, 0), 0);
  ASSERT_EQ(::chown(from("etc/passwd").c_str(), 1234, 5678), 0);
  ASSERT_EQ(::chmod(from("etc/passwd").c_str(), 06755), 0);
  fs::create_hard_link(from("etc/passwd"), from("another"));
  fs::create_hard_link(from("etc/passwd"), from("zzz"));
  pass();
  expect_equal();
  EXPECT_EQ(read(to("etc/passwd")), "root");
}

TEST_F(Upper, SourcesNotesOnItsDiskStayThere) {
  write("f", "x");
  ASSERT_EQ(::setxattr(from("f").c_str(), "trusted.overlay.origin", "\0\1", 2, 0), 0);
  pass();
  char value[16];
  EXPECT_EQ(::getxattr(to("f").c_str(), "trusted.overlay.origin", value, sizeof value), -1);
}

TEST_F(Upper, UnchangedLayerSendsNothing) {
  for (int i = 0; i < 50; ++i) write("d" + std::to_string(i % 5) + "/f" + std::to_string(i), "content");
  age();
  pass();
  age();
  pass();
  const auto last = pass();
  EXPECT_EQ(last.entries, 55u);
  EXPECT_EQ(last.changed, 0u);
  EXPECT_EQ(last.sent_bytes, 0u);
  expect_equal();
}

TEST_F(Upper, ChangeWithinTheClocksGrainIsFound) {
  write("f", "one");
  pass();
  // The same size, and quite likely the same times.
  write("f", "two");
  pass();
  EXPECT_EQ(read(to("f")), "two");
}

TEST_F(Upper, ChangesRemovalsAndTypeChanges) {
  write("a/file", "1");
  write("a/dir/below", "2");
  write("b", "3");
  write("c/x", "4");
  pass();
  fs::remove_all(from("a/dir"));
  write("a/dir", "now a file");
  fs::remove(from("b"));
  fs::create_directory(from("b"));
  write("b/in", "5");
  fs::remove_all(from("c"));
  write("a/file", "longer than before");
  pass();
  expect_equal();
}

TEST_F(Upper, ShrunkAndGrownFilesHoldZerosBetween) {
  write("f", std::string(300'000, 'x'));
  pass();
  fs::resize_file(from("f"), 70'000);
  fs::resize_file(from("f"), 250'000);
  pass();
  expect_equal();
  EXPECT_EQ(read(to("f")), std::string(70'000, 'x') + std::string(180'000, '\0'));
}

TEST_F(Upper, OnlyBlocksThatDifferAreSentAgain) {
  std::string text(8 << 20, 'x');
  for (std::size_t i = 0; i < text.size(); i += 4096) text[i] = static_cast<char>(i >> 12);
  write("big", text);
  EXPECT_GE(pass().data_bytes, text.size());
  {
    const Fd fd{::open(from("big").c_str(), O_WRONLY)};
    ASSERT_EQ(::pwrite(fd.get(), "changed", 7, 3 << 20), 7);
    ASSERT_EQ(::pwrite(fd.get(), "appended", 8, 8 << 20), 8);
  }
  const auto last = pass();
  EXPECT_LE(last.data_bytes, 2 * upper_block);
  EXPECT_GT(last.data_bytes, 0u);
  expect_equal();
}

TEST_F(Upper, HolesStayHoles) {
  {
    const Fd fd{::open(from("sparse").c_str(), O_WRONLY | O_CREAT, 0600)};
    ASSERT_EQ(::pwrite(fd.get(), "x", 1, std::int64_t{1} << 33), 1);
    ASSERT_EQ(::pwrite(fd.get(), "y", 1, 1 << 20), 1);
  }
  const auto first = pass();
  EXPECT_LE(first.data_bytes, 2 * upper_block);
  struct stat status {};
  ASSERT_EQ(::stat(to("sparse").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, (std::int64_t{1} << 33) + 1);
  EXPECT_LT(status.st_blocks, 1024);
  {
    const Fd fd{::open(from("sparse").c_str(), O_WRONLY)};
    ASSERT_EQ(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 65536), 0);
  }
  pass();
  const Fd fd{::open(to("sparse").c_str(), O_RDONLY)};
  char byte = 'n';
  ASSERT_EQ(::pread(fd.get(), &byte, 1, 1 << 20), 1);
  EXPECT_EQ(byte, '\0');
}

TEST_F(Upper, StoresThroughAMappingAreFoundForSuspects) {
  write("db", std::string(200'000, 'x'));
  age();
  const Fd fd{::open(from("db").c_str(), O_RDWR)};
  auto* memory = static_cast<char*>(::mmap(nullptr, 200'000, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  ASSERT_NE(memory, MAP_FAILED);
  memory[150'000] = 'a';  // stamps the times; the next store doesn't
  age();
  pass();
  age();
  pass();
  memory[150'001] = 'b';
  pass({"db"});
  ::munmap(memory, 200'000);
  EXPECT_EQ(read(to("db")).substr(149'999, 4), "xabx");
}

TEST_F(Upper, RenamedFilesAreNotSentAgain) {
  write("logs/current", std::string(4 << 20, 'l'));
  write("old/sub/file", std::string(1 << 20, 'f'));
  pass();
  fs::rename(from("logs/current"), from("logs/current.1"));
  write("logs/current", "new");
  fs::rename(from("old"), from("moved"));
  const auto last = pass();
  EXPECT_LT(last.data_bytes, 1u << 20);
  expect_equal();
}

TEST_F(Upper, HardLinksThatComeAndGo) {
  write("m", std::string(100'000, 'm'));
  fs::create_hard_link(from("m"), from("n"));
  pass();
  fs::create_hard_link(from("n"), from("a"));
  pass();
  expect_equal();
  fs::remove(from("m"));
  {
    // Zeros where there was content, written by the name that did not carry it.
    const Fd fd{::open(from("n").c_str(), O_WRONLY)};
    const std::string zeros(70'000, '\0');
    ASSERT_EQ(::pwrite(fd.get(), zeros.data(), zeros.size(), 0), 70'000);
  }
  fs::remove(from("a"));
  pass();
  expect_equal();
  write("a", "its own");
  pass();
  expect_equal();
}

TEST_F(Upper, DirectoryThatBecameOpaqueBeginsAnew) {
  write("dir/old", "old");
  pass();
  fs::remove_all(from("dir"));
  write("dir/new", "new");
  ASSERT_EQ(::setxattr(from("dir").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  pass();
  expect_equal();
}

TEST_F(Upper, PathsThatLeadOutAreRefused) {
  fs::create_symlink("/etc", to("link"));
  fs::create_directory(base + "/outside");
  const auto apply = [&](UpperRecord record) {
    return target->apply(image::pack(std::vector<UpperRecord>{std::move(record)}));
  };
  for (const char* path : {"../outside/x", "/etc/x", "a/../../outside/x", "link/x", "./x", "a//x", ".."})
    EXPECT_FALSE(apply({.action = "make", .path = path, .mode = S_IFREG | 0644})) << path;
  EXPECT_FALSE(apply({.action = "data", .path = "link", .bytes = {1}}));
  EXPECT_FALSE(apply({.action = "remove", .path = ".."}));
  EXPECT_FALSE(apply({.action = "remove", .path = ""}));
  EXPECT_FALSE(apply({.action = "link", .path = "x", .target = "../outside"}));
  EXPECT_FALSE(apply({.action = "link", .path = "x", .target = "link/passwd"}));
  EXPECT_FALSE(apply({.action = "make", .path = std::string(300, 'n'), .mode = S_IFREG}));
  EXPECT_FALSE(apply({.action = "make", .path = "x", .mode = S_IFREG, .size = ~0ull}));
  EXPECT_FALSE(apply({.action = "dance", .path = "x"}));
  EXPECT_TRUE(apply({.action = "make", .path = "fine", .mode = S_IFREG}));
  EXPECT_FALSE(fs::exists("/etc/x"));
  EXPECT_TRUE(fs::is_empty(base + "/outside"));
}

TEST_F(Upper, MalformedMessagesAreRefused) {
  EXPECT_FALSE(target->apply({}));
  const Bytes noise{0x93, 0x01, 0x02, 0xc0};
  EXPECT_FALSE(target->apply(noise));
  EXPECT_FALSE(target->apply(Bytes(4 * MiB, 0x80)));
}

/// An overlay that is mounted nowhere: it goes with its descriptor.
Fd mount_overlay(const std::string& lower, const std::string& upper, const std::string& work) {
  Fd context(::fsopen("overlay", FSOPEN_CLOEXEC));
  EXPECT_TRUE(context);
  for (const auto& [key, value] : {std::pair{"lowerdir", lower}, {"upperdir", upper}, {"workdir", work}})
    EXPECT_EQ(::fsconfig(context.get(), FSCONFIG_SET_STRING, key, value.c_str(), 0), 0) << key;
  EXPECT_EQ(::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), 0) << std::strerror(errno);
  return Fd(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
}

TEST_F(Upper, MountedOverlaySeesEverything) {
  for (const char* name : {"work-from", "work-to", "lower/etc/dir/deep", "lower/lib"})
    fs::create_directories(base + "/" + name);
  for (const char* name : {"etc/a", "etc/b", "etc/dir/x", "etc/dir/deep/y", "lib/so"})
    std::ofstream(base + "/lower/" + name) << name;
  const Fd there = mount_overlay(base + "/lower", from(), base + "/work-from");
  const Fd here = mount_overlay(base + "/lower", to(), base + "/work-to");
  const auto path = [](const Fd& root, const std::string& name) {
    return "/proc/self/fd/" + std::to_string(root.get()) + "/" + name;
  };
  const auto compare = [&] { expect_equal(path(there, ""), path(here, "")); };
  compare();  // and the destination has looked at every name, and remembers
  EXPECT_FALSE(fs::exists(path(here, "etc/new")));
  target.emplace(UpperTarget::open(here.get(), UpperTarget::Kind::overlay).value());

  std::ofstream(path(there, "etc/new")) << "new";
  std::ofstream(path(there, "etc/a"), std::ios::app) << " and more";
  fs::remove(path(there, "etc/b"));
  fs::remove_all(path(there, "etc/dir"));
  fs::create_directory(path(there, "etc/dir"));
  std::ofstream(path(there, "etc/dir/z")) << "z";
  fs::permissions(path(there, "lib/so"), fs::perms::owner_read);
  fs::create_hard_link(path(there, "etc/new"), path(there, "lib/new"));
  pass();
  compare();
  EXPECT_TRUE(fs::exists(path(here, "etc/dir/z")));

  std::ofstream(path(there, "etc/b")) << "back again";
  fs::remove_all(path(there, "etc/dir"));
  fs::rename(path(there, "etc/new"), path(there, "etc/renamed"));
  fs::remove_all(path(there, "lib"));
  pass();
  compare();
  EXPECT_FALSE(fs::exists(path(here, "lib")));
  EXPECT_EQ(read(path(here, "etc/b")), "back again");
}

TEST_F(Upper, RedirectedDirectoryIsRefusedByAMountedOverlay) {
  fs::create_directories(from("renamed"));
  ASSERT_EQ(::setxattr(from("renamed").c_str(), "trusted.overlay.redirect", "/etc", 4, 0), 0);
  pass();  // a layer takes it as it is
  expect_equal();
  fs::create_directories(base + "/lower");
  fs::create_directories(base + "/work");
  fs::create_directories(base + "/upper");
  const Fd here = mount_overlay(base + "/lower", base + "/upper", base + "/work");
  auto overlay = UpperTarget::open(here.get(), UpperTarget::Kind::overlay).value();
  auto again = UpperSource::open(from()).value();
  const auto refused = again.pass([&](BytesView message) { return overlay.apply(message); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
}

/// A pod's root at its destination: an overlay of base/lower and base/to, and a source that may lie.
class UpperOverNode : public Upper {
 protected:
  void SetUp() override {
    Upper::SetUp();
    for (const char* name : {"work", "lower/etc", "lower/secret", "lower/people", "lower/var/lib/godwit/tls"})
      fs::create_directories(base + "/" + name);
    std::ofstream(lower("etc/shadow")) << "the node's own";
    std::ofstream(lower("var/lib/godwit/tls/node.key")) << "key";
    ::chmod(lower("etc/shadow").c_str(), 0600);
    ::chmod(lower("secret").c_str(), 0700);
    ::chmod(lower("people").c_str(), 0700);
    ::chown(lower("people").c_str(), user, user);
  }
  void mount(UpperRights rights) {
    root = mount_overlay(base + "/lower", to(), base + "/work");
    target.emplace(UpperTarget::open(root.get(), UpperTarget::Kind::overlay, std::move(rights)).value());
  }
  void mount_for_user() { mount({.user = {.uid = user, .gid = user}, .hidden = "/var/lib/godwit"}); }
  std::string lower(const std::string& path) const { return base + "/lower/" + path; }
  std::string here(const std::string& path = "") const { return fmt::format("/proc/self/fd/{}/{}", root.get(), path); }
  Result<void> apply(UpperRecord record) {
    return target->apply(image::pack(std::vector<UpperRecord>{std::move(record)}));
  }
  void expect_refused(UpperRecord record) {
    const std::string what = record.action + " " + record.path;
    const auto result = apply(std::move(record));
    ASSERT_FALSE(result) << what;
    EXPECT_EQ(result.error().kind, ErrorKind::refused) << what << ": " << result.error().message();
  }
  static struct stat status_of(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return status;
  }

  static constexpr uid_t user = 4000;
  Fd root;
};

TEST_F(UpperOverNode, TheNodesFilesAreReplacedAndNeverChanged) {
  mount({});  // not even for root, with all capabilities
  const std::vector<std::uint8_t> note{'x'};
  expect_refused({.action = "seal", .path = "etc/shadow", .mode = S_IFREG | 0444, .uid = user});
  expect_refused({.action = "seal", .path = "etc/shadow", .mode = S_IFCHR, .uid = user});
  expect_refused({.action = "link", .path = "k", .target = "etc/shadow"});
  expect_refused({.action = "data", .path = "etc/shadow", .bytes = note});
  expect_refused({.action = "zero", .path = "etc/shadow", .size = 1});
  expect_refused({.action = "make", .path = "etc/shadow", .mode = S_IFREG | 0600, .size = 1});
  EXPECT_FALSE(fs::exists(to("etc/shadow")));
  EXPECT_FALSE(fs::exists(here("k")));
  EXPECT_EQ(read(here("etc/shadow")), "the node's own");

  EXPECT_TRUE(apply({.action = "make", .path = "etc/shadow", .mode = S_IFREG | 0600, .fresh = true}));
  EXPECT_TRUE(apply({.action = "data", .path = "etc/shadow", .bytes = note}));
  EXPECT_TRUE(apply({.action = "make", .path = "etc/shadow", .mode = S_IFREG | 0600, .size = 1}));
  EXPECT_TRUE(apply({.action = "link", .path = "k", .target = "etc/shadow"}));
  EXPECT_TRUE(apply({.action = "seal", .path = "k", .mode = S_IFREG | 0444, .uid = user}));
  EXPECT_EQ(read(here("etc/shadow")), "x");
  EXPECT_EQ(status_of(here("etc/shadow")).st_uid, user);
  EXPECT_EQ(read(lower("etc/shadow")), "the node's own");
  EXPECT_EQ(status_of(lower("etc/shadow")).st_uid, 0u);
}

TEST_F(UpperOverNode, WhatWasRemovedIsNotMadeAnyMore) {
  mount({});
  EXPECT_TRUE(apply({.action = "make", .path = "d", .mode = S_IFDIR | 0755}));
  EXPECT_TRUE(apply({.action = "make", .path = "d/f", .mode = S_IFREG | 0644}));
  EXPECT_TRUE(apply({.action = "make", .path = "d0", .mode = S_IFREG | 0644}));
  EXPECT_TRUE(apply({.action = "remove", .path = "d"}));
  fs::create_directories(here("d"));
  std::ofstream(here("d/f")) << "somebody else's";
  expect_refused({.action = "seal", .path = "d/f", .mode = S_IFREG | 0444, .uid = user});
  EXPECT_TRUE(apply({.action = "seal", .path = "d0", .mode = S_IFREG | 0444, .uid = user}));
}

TEST_F(UpperOverNode, DirectoriesChangeAsThePodCouldChangeThem) {
  mount_for_user();
  const auto seal = [&](const std::string& path, mode_t mode, uid_t uid, gid_t gid) {
    EXPECT_TRUE(apply({.action = "seal", .path = path, .mode = S_IFDIR | mode, .uid = uid, .gid = gid})) << path;
    const auto is = status_of(here(path));
    return fmt::format("{:o} {} {}", is.st_mode & 07777, is.st_uid, is.st_gid);
  };
  EXPECT_EQ(seal("secret", 0755, 0, 0), "700 0 0");
  EXPECT_EQ(seal("secret", 0700, user, user), "700 0 0");
  EXPECT_EQ(seal("secret", 0700, 0, 0), "700 0 0");
  EXPECT_EQ(seal("people", 0750, 0, 0), "700 4000 4000");
  EXPECT_EQ(seal("people", 0750, user, 7), "700 4000 4000");
  EXPECT_EQ(seal("people", 0750, user, user), "750 4000 4000");
  EXPECT_TRUE(apply({.action = "make", .path = "secret/own", .mode = S_IFDIR | 0755}));
  EXPECT_EQ(seal("secret/own", 0711, user, user), "711 4000 4000");

  target.emplace(UpperTarget::open(root.get(), UpperTarget::Kind::overlay, {.capabilities = 0}).value());
  EXPECT_EQ(seal("secret", 0711, user, user), "700 0 0");
  EXPECT_EQ(seal("secret", 0711, 0, 0), "711 0 0");
  target.emplace(UpperTarget::open(root.get(), UpperTarget::Kind::overlay).value());
  EXPECT_EQ(seal("secret", 0755, user, user), "755 4000 4000");
  EXPECT_EQ(status_of(lower("secret")).st_mode & 07777, 0700u);
}

TEST_F(UpperOverNode, TheNodesStateStaysHidden) {
  mount({.hidden = "/var/lib/godwit"});
  expect_refused({.action = "make", .path = "var/lib/godwit", .mode = S_IFDIR | 0755});
  expect_refused({.action = "make", .path = "var/lib/godwit/tls/new", .mode = S_IFREG | 0644});
  expect_refused({.action = "seal", .path = "var/lib/godwit/tls", .mode = S_IFDIR | 0755});
  expect_refused({.action = "link", .path = "k", .target = "var/lib/godwit/tls/node.key"});
  // What covers it would go with a directory above.
  expect_refused({.action = "remove", .path = "var"});
  expect_refused({.action = "make", .path = "var/lib", .mode = S_IFDIR | 0755, .fresh = true});
  expect_refused({.action = "make", .path = "var/lib", .mode = S_IFREG | 0755});
  EXPECT_EQ(read(here("var/lib/godwit/tls/node.key")), "key");
  EXPECT_TRUE(apply({.action = "make", .path = "var/lib", .mode = S_IFDIR | 0755}));
  EXPECT_TRUE(apply({.action = "make", .path = "var/lib/godwit2", .mode = S_IFREG | 0644}));
}

TEST_F(UpperOverNode, AnHonestUsersFilesArrive) {
  fs::create_directories(base + "/lower-there");
  fs::create_directories(base + "/work-there");
  fs::copy(base + "/lower", base + "/lower-there", fs::copy_options::recursive);
  ::chown((base + "/lower-there/people").c_str(), user, user);
  ::chmod((base + "/lower-there/people").c_str(), 0700);
  for (const auto& node : {base + "/lower", base + "/lower-there"}) {
    fs::create_directories(node + "/people/old/deep");
    for (const char* name : {"/people/mine", "/people/gone", "/people/old/file", "/people/old/deep/file"}) {
      std::ofstream(node + name) << "of the node";
      ::chown((node + name).c_str(), user, user);
    }
  }
  // The nodes differ here, and each keeps its own.
  ::chmod((base + "/lower-there/etc").c_str(), 0755);
  ::chmod(lower("etc").c_str(), 0711);
  const Fd other = mount_overlay(base + "/lower-there", from(), base + "/work-there");
  const auto there = [&](const std::string& path) { return fmt::format("/proc/self/fd/{}/{}", other.get(), path); };
  mount_for_user();

  ASSERT_EQ(::chmod(there("people/mine").c_str(), 0640), 0);  // the metadata alone, of a file that is the node's
  std::ofstream(there("people/new")) << "new";
  std::ofstream(there("etc/new")) << "new";
  fs::create_hard_link(there("people/new"), there("people/another"));
  fs::create_symlink("new", there("people/link"));
  fs::remove(there("people/gone"));
  fs::remove_all(there("people/old"));
  fs::create_directory(there("people/old"));
  ASSERT_EQ(::chmod(there("people").c_str(), 0711), 0);
  pass();
  EXPECT_EQ(status_of(here("etc")).st_mode & 07777, 0711u);
  EXPECT_EQ(read(here("etc/new")), "new");
  expect_equal(there("people"), here("people"));
  EXPECT_EQ(status_of(here("people")).st_mode & 07777, 0711u);

  std::ofstream(there("people/mine"), std::ios::app) << " and more";
  fs::rename(there("people/new"), there("people/renamed"));
  fs::create_hard_link(there("people/another"), there("people/old/third"));
  ASSERT_EQ(::lchown(there("people/link").c_str(), user, user), 0);
  std::ofstream(there("people/gone")) << "back again";
  fs::remove_all(there("people/old"));
  pass();
  expect_equal(there("people"), here("people"));

  ASSERT_EQ(::chmod(there("people/renamed").c_str(), 0600), 0);
  std::ofstream(there("people/old")) << "a file now";
  pass();
  expect_equal(there("people"), here("people"));
}

TEST_F(Upper, PathsThatNoSystemCallTakesAreRefused) {
  Fd in{::open(from().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  const std::string name(255, 'n');
  for (int i = 0; i < 17; ++i) {
    ASSERT_EQ(::mkdirat(in.get(), name.c_str(), 0755), 0);
    in = Fd{::openat(in.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  }
  const auto refused = source->pass([](BytesView) -> Result<void> { return {}; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
  EXPECT_LT(refused.error().message().size(), 512u);
}

TEST_F(Upper, ThousandUnchangedFilesCostLittle) {
  for (int i = 0; i < 1000; ++i) write("d" + std::to_string(i % 20) + "/f" + std::to_string(i), "content");
  age();
  pass();
  age();
  pass();
  const auto last = pass();
  EXPECT_EQ(last.changed, 0u);
  RecordProperty("us", static_cast<int>(last.took.count()));
  std::printf("pass over %d unchanged entries: %d us\n", static_cast<int>(last.entries),
              static_cast<int>(last.took.count()));
}

}  // namespace
}  // namespace godwit::pod
