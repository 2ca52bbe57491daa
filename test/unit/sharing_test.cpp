#include "migrate/sharing.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

namespace godwit::migrate {
namespace {

constexpr std::uint64_t pages(std::uint64_t count) {
  return count * page_size;
}

Area anonymous(std::uint64_t begin, std::uint64_t end, std::string flags = {}) {
  return {.begin = pages(begin), .end = pages(end), .protection = PROT_READ | PROT_WRITE, .flags = std::move(flags)};
}

PageSet set_of(const std::vector<Range>& ranges) {
  PageSet set;
  for (const auto& range : ranges) set.add({pages(range.begin), pages(range.end)});
  return set;
}

std::vector<Range> in_pages(const std::vector<Range>& ranges) {
  std::vector<Range> result;
  for (const auto& range : ranges) result.push_back({range.begin / page_size, range.end / page_size});
  return result;
}

TEST(Sharing, ForkLeavesOutWhatIsNotInherited) {
  const Layout parent{anonymous(10, 20), anonymous(30, 40, "dc dd"), anonymous(50, 60, "wf")};
  EXPECT_EQ(layout_after_fork(parent), (Layout{parent[0], parent[2]}));
  // Pages of what is wiped on fork are not there either.
  const auto left = pages_after_fork(set_of({{12, 15}, {35, 36}, {50, 60}}), parent, layout_after_fork(parent));
  EXPECT_EQ(in_pages(left.all()), (std::vector<Range>{{12, 15}}));
}

TEST(Sharing, PagesOfTheParentAreThereOnlyWhereTheMappingStays) {
  const Layout parent{anonymous(10, 20), anonymous(30, 40), anonymous(50, 60)};
  Layout child{anonymous(10, 14), anonymous(30, 45), anonymous(50, 60)};
  child[2].backing = Backing::file;
  child[2].path = "/bin/true";
  const auto left = pages_after_fork(set_of({{12, 16}, {39, 40}, {50, 60}}), parent, child);
  EXPECT_EQ(in_pages(left.all()), (std::vector<Range>{{12, 14}, {39, 40}}));
}

TEST(Sharing, PiecesWithoutPages) {
  const std::vector<Piece> all{{7, {pages(10), pages(20)}}, {7, {pages(600), pages(601)}}};
  const auto left = without(all, set_of({{9, 11}, {14, 16}, {600, 700}}));
  ASSERT_EQ(left.size(), 2U);
  EXPECT_EQ(left[0].range, (Range{pages(11), pages(14)}));
  EXPECT_EQ(left[1].range, (Range{pages(16), pages(20)}));
  EXPECT_EQ(left[1].space, 7U);
  EXPECT_EQ(in_pages(in_both(set_of({{1, 5}, {9, 12}}), set_of({{4, 10}})).all()),
            (std::vector<Range>{{4, 5}, {9, 10}}));
}

TEST(Sharing, OnlyPresentPrivateFramesAreTheSame) {
  constexpr auto there = kernel::pagemap_present;
  EXPECT_TRUE(same_frame(there | 42, there | 42));
  EXPECT_TRUE(same_frame(there | 42 | kernel::pagemap_exclusive, there | 42)) << "flags that come and go say nothing";
  EXPECT_FALSE(same_frame(there | 42, there | 43));
  EXPECT_FALSE(same_frame(there, there)) << "without CAP_SYS_ADMIN frames read as 0";
  EXPECT_FALSE(same_frame(kernel::pagemap_swapped | 42, kernel::pagemap_swapped | 42));
  EXPECT_FALSE(same_frame(there | kernel::pagemap_file | 42, there | kernel::pagemap_file | 42));
}

/// A child that has inherited 1,024 pages and then written a quarter of them.
class SharingWithChild : public ::testing::Test {
 protected:
  static constexpr std::uint64_t count = 1024, changed = 256;

  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "frames are shown to root only";
    memory =
        static_cast<char*>(mmap(nullptr, pages(count), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    std::memset(memory, 1, pages(count));
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    child = fork();
    if (child == 0) {
      std::memset(memory, 2, pages(changed));
      (void)!write(ready[1], "x", 1);
      for (;;) pause();
    }
    char byte;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    begin = reinterpret_cast<std::uint64_t>(memory);
  }
  void TearDown() override {
    if (child > 0) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    if (memory != nullptr) munmap(memory, pages(count));
  }

  char* memory = nullptr;
  pid_t child = 0;
  std::uint64_t begin = 0;
};

TEST_F(SharingWithChild, SameFramesAreThoseThatNobodyHasWritten) {
  const auto ours = kernel::Pagemap::open(HostPid{getpid()}), theirs = kernel::Pagemap::open(HostPid{child});
  ASSERT_TRUE(ours && theirs);
  memory[pages(count - 1)] = 3;
  const auto same = same_frames(*theirs, *ours, {{begin, begin + pages(count)}});
  ASSERT_TRUE(same) << same.error().message();
  EXPECT_EQ(same->all(), (std::vector<Range>{{begin + pages(changed), begin + pages(count - 1)}}));
}

TEST_F(SharingWithChild, ASampleTellsAboutHowMuchIsShared) {
  const auto ours = kernel::Pagemap::open(HostPid{getpid()}), theirs = kernel::Pagemap::open(HostPid{child});
  ASSERT_TRUE(ours && theirs);
  const std::vector<Range> all{{begin, begin + pages(count)}};
  const auto about = about_shared(*theirs, *ours, all);
  ASSERT_TRUE(about) << about.error().message();
  EXPECT_NEAR(static_cast<double>(*about), count - changed, 32);
  std::memset(memory, 4, pages(count));
  EXPECT_EQ(about_shared(*theirs, *ours, all).value_or(1), 0U);
}

}  // namespace
}  // namespace godwit::migrate
