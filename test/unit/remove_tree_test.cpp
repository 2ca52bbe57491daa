#include "base/remove_tree.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/fd.hpp"

namespace godwit {
namespace {

namespace fs = std::filesystem;

class RemoveTree : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/godwit-remove-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory = name;
    tree = directory + "/tree";
    fs::create_directory(tree);
  }
  void TearDown() override { fs::remove_all(directory); }
  std::string directory, tree;
};

TEST_F(RemoveTree, DeeperThanAnyPathWithFewDescriptors) {
  constexpr int depth = 700;
  Fd at(open(tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int i = 0; i < depth; i++) {
    for (const char* name : {"deeper", "beside", ".removed-7"}) ASSERT_EQ(mkdirat(at.get(), name, 0700), 0);
    const Fd file(openat(at.get(), "beside/file", O_CREAT | O_WRONLY | O_CLOEXEC, 0));
    ASSERT_TRUE(file);
    at = Fd(openat(at.get(), "deeper", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at);
  }
  at.reset();
  const int used = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::close(used);
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit few{static_cast<rlim_t>(used) + 4, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &few);
  const auto removed = remove_tree(tree);
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_TRUE(removed) << removed.error().message();
  EXPECT_FALSE(fs::exists(tree));
}

TEST_F(RemoveTree, LinksAreNotFollowed) {
  std::ofstream(directory + "/kept") << "kept";
  fs::create_directory(directory + "/other");
  std::ofstream(directory + "/other/kept") << "kept";
  fs::create_symlink(directory + "/kept", tree + "/file");
  fs::create_directory_symlink(directory + "/other", tree + "/directory");
  ASSERT_TRUE(remove_tree(tree));
  EXPECT_TRUE(fs::exists(directory + "/kept"));
  EXPECT_TRUE(fs::exists(directory + "/other/kept"));
  EXPECT_TRUE(remove_tree(tree)) << "nothing is there";
  fs::create_directory_symlink(directory + "/other", tree);
  EXPECT_TRUE(remove_tree(tree));
  EXPECT_FALSE(fs::is_symlink(tree));
  EXPECT_TRUE(fs::exists(directory + "/other/kept"));
  EXPECT_TRUE(remove_tree(directory + "/kept"));
  EXPECT_FALSE(fs::exists(directory + "/kept"));
}

}  // namespace
}  // namespace godwit
