#include "pod/manifest.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/fd.hpp"

namespace godwit::pod {
namespace {

namespace fs = std::filesystem;

class Manifest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/godwit-manifest-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base = name;
    for (const char* root : {"/a", "/b"}) {
      fs::create_directories(base + root + "/lib");
      write(std::string(root) + "/lib/one", "content one");
      write(std::string(root) + "/lib/two", "content two");
    }
    // The clock's grain: what has just been written isn't remembered.
    const timespec moment{.tv_sec = 0, .tv_nsec = 30'000'000};
    ::nanosleep(&moment, nullptr);
  }
  void TearDown() override { fs::remove_all(base); }
  void write(const std::string& path, const std::string& text) const { std::ofstream(base + path) << text; }

  std::string base;
  std::vector<std::string> paths{"/lib/one", "/lib/two", "/lib"};
};

TEST_F(Manifest, SameFilesOnAnotherDiskDontDiffer) {
  HashCache cache = HashCache::load(base + "/cache");
  const auto entries = describe(base + "/a", paths, cache).value();
  const auto sent = image::unpack<std::vector<ManifestEntry>>(image::pack(entries)).value();
  EXPECT_TRUE(compare(base + "/b", sent, cache).value().empty());
}

TEST_F(Manifest, DifferencesAreNamed) {
  HashCache cache = HashCache::load(base + "/cache");
  const auto entries = describe(base + "/a", paths, cache).value();
  write("/b/lib/one", "content ONE");
  fs::remove(base + "/b/lib/two");
  ASSERT_EQ(::chmod((base + "/b/lib").c_str(), 0700), 0);
  const auto differences = compare(base + "/b", entries, cache).value();
  ASSERT_EQ(differences.size(), 3u);
  EXPECT_EQ(differences[0].reason, "has another content");
  EXPECT_EQ(differences[1].reason, "is missing");
  EXPECT_NE(differences[2].reason.find("mode 0700 here"), std::string::npos);
  write("/b/lib/one", "longer content");
  EXPECT_EQ(compare(base + "/b", {entries[0]}, cache).value()[0].reason, "has 14 bytes here, 11 at the source");
}

TEST_F(Manifest, NothingIsHashedTwiceAlsoByALaterDaemon) {
  HashCache cache = HashCache::load(base + "/cache");
  ASSERT_TRUE(describe(base + "/a", paths, cache));
  EXPECT_EQ(cache.hashed(), 2u);
  ASSERT_TRUE(describe(base + "/a", paths, cache));
  EXPECT_EQ(cache.hashed(), 2u);
  ASSERT_TRUE(cache.save());
  HashCache later = HashCache::load(base + "/cache");
  ASSERT_TRUE(describe(base + "/a", paths, later));
  EXPECT_EQ(later.hashed(), 0u);
  write("/a/lib/one", "changed one");
  const auto entries = describe(base + "/a", paths, later).value();
  EXPECT_EQ(later.hashed(), 1u);
  EXPECT_EQ(compare(base + "/b", entries, later).value().size(), 1u);
}

TEST_F(Manifest, FileJustWrittenIsNotRemembered) {
  HashCache cache = HashCache::load(base + "/cache");
  write("/a/lib/one", "just now");
  ASSERT_TRUE(describe(base + "/a", {"/lib/one"}, cache));
  write("/a/lib/one", "and agai");
  const auto entries = describe(base + "/a", {"/lib/one"}, cache).value();
  write("/b/lib/one", "and agai");
  EXPECT_TRUE(compare(base + "/b", entries, cache).value().empty());
}

TEST_F(Manifest, DamagedCacheIsAnEmptyOne) {
  write("/cache", "no message at all");
  HashCache cache = HashCache::load(base + "/cache");
  ASSERT_TRUE(describe(base + "/a", paths, cache));
  EXPECT_EQ(cache.hashed(), 2u);
}

TEST_F(Manifest, RecheckSeesWhatChanged) {
  HashCache cache = HashCache::load(base + "/cache");
  const auto entries = describe(base + "/a", paths, cache).value();
  EXPECT_TRUE(changed_since(base + "/a", entries).value().empty());
  write("/a/lib/two", "CONTENT two");
  EXPECT_EQ(changed_since(base + "/a", entries).value(), std::vector<std::string>{"/lib/two"});
}

TEST_F(Manifest, LinksStayInTheRoot) {
  fs::create_symlink("/lib", base + "/a/sym");
  HashCache cache = HashCache::load(base + "/cache");
  const auto entries = describe(base + "/a", {"/sym/one"}, cache).value();
  EXPECT_EQ(entries[0].size, 11u);
}

}  // namespace
}  // namespace godwit::pod
