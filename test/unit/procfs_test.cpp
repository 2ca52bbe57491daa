#include "kernel/procfs.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>

namespace godwit::kernel {
namespace {

HostPid self() {
  return HostPid{::getpid()};
}

TEST(Procfs, MapsSayWhatWasMapped) {
  const int fd = ::memfd_create("two words", 0);
  ASSERT_EQ(::ftruncate(fd, 8 * 4096), 0);
  void* where = ::mmap(nullptr, 4 * 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 2 * 4096);
  ASSERT_NE(where, MAP_FAILED);
  struct stat status {};
  ::fstat(fd, &status);
  const auto maps = read_maps(self());
  ASSERT_TRUE(maps) << maps.error().message();
  const auto begin = reinterpret_cast<RemoteAddress>(where);
  const auto found = std::find_if(maps->begin(), maps->end(), [&](const Mapping& m) { return m.begin == begin; });
  ASSERT_NE(found, maps->end());
  EXPECT_EQ(found->size(), 4U * 4096);
  EXPECT_EQ(found->protection, PROT_READ | PROT_EXEC);
  EXPECT_TRUE(found->shared);
  EXPECT_EQ(found->offset, 2U * 4096);
  EXPECT_EQ(found->inode, status.st_ino);
  EXPECT_EQ(found->device, status.st_dev);
  EXPECT_EQ(found->name, "/memfd:two words (deleted)");
  EXPECT_TRUE(found->vm_flags.empty());
  const auto detailed = read_smaps(self());
  ASSERT_TRUE(detailed) << detailed.error().message();
  const auto same =
      std::find_if(detailed->begin(), detailed->end(), [&](const Mapping& m) { return m.begin == begin; });
  ASSERT_NE(same, detailed->end());
  EXPECT_TRUE(same->vm_flags.starts_with("rd ex sh ")) << same->vm_flags;
  EXPECT_EQ(same->name, found->name);
  ::munmap(where, 4 * 4096);
  ::close(fd);
}

TEST(Procfs, FiveThousandMappingsInAFewMilliseconds) {
  constexpr std::size_t count = 5000;
  auto* where = static_cast<char*>(::mmap(nullptr, count * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(where, MAP_FAILED);
  for (std::size_t i = 0; i < count; i += 2) ::mprotect(where + i * 4096, 4096, PROT_READ | PROT_WRITE);
  auto best = std::chrono::nanoseconds::max();
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const auto maps = read_maps(self());
    best = std::min<std::chrono::nanoseconds>(best, std::chrono::steady_clock::now() - begin);
    ASSERT_TRUE(maps);
    EXPECT_GT(maps->size(), count - 10);
  }
  std::printf("5,000 mappings read in %.2f ms\n", static_cast<double>(best.count()) / 1e6);
  EXPECT_LT(best, std::chrono::milliseconds(50));
  ::munmap(where, count * 4096);
}

TEST(Procfs, StatusAndStatAgreeWithTheSystemCalls) {
  ::prctl(PR_SET_NAME, "a (b) c");
  const auto status = read_status(self());
  const auto stat = read_stat(self());
  ::prctl(PR_SET_NAME, "unit-tests");
  ASSERT_TRUE(status) << status.error().message();
  ASSERT_TRUE(stat) << stat.error().message();
  EXPECT_EQ(status->name, "a (b) c");
  EXPECT_EQ(stat->name, "a (b) c");
  EXPECT_EQ(status->parent.value, ::getppid());
  EXPECT_EQ(stat->parent, ::getppid());
  EXPECT_EQ(stat->group, ::getpgrp());
  EXPECT_EQ(stat->session, ::getsid(0));
  EXPECT_EQ(status->uids[1], ::geteuid());
  EXPECT_EQ(status->gids[0], ::getgid());
  EXPECT_EQ(status->ns_tgid.front(), ::getpid());
  const mode_t mask = ::umask(022);
  EXPECT_EQ(static_cast<mode_t>(status->umask), mask);
  ::umask(mask);
  EXPECT_GT(status->resident_bytes, 0U);
  EXPECT_EQ(stat->exit_signal, SIGCHLD);
  EXPECT_GT(stat->start_time, 0U);
  EXPECT_GT(stat->end_code, stat->start_code);
  EXPECT_GT(stat->env_end, stat->arg_start);
  std::vector<gid_t> groups(256);
  groups.resize(static_cast<std::size_t>(::getgroups(static_cast<int>(groups.size()), groups.data())));
  std::sort(groups.begin(), groups.end());
  EXPECT_EQ(status->groups, groups);
}

TEST(Procfs, DescriptorIsDescribedWithoutBeingTouched) {
  const int fd = ::memfd_create("thing", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(fd, 100), 0);
  ::lseek(fd, 42, SEEK_SET);
  const auto entry = read_descriptor(self(), fd);
  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->link, "/memfd:thing (deleted)");
  EXPECT_EQ(entry->position, 42U);
  EXPECT_EQ(entry->flags & O_ACCMODE, O_RDWR);
  EXPECT_EQ(entry->flags & O_CLOEXEC, O_CLOEXEC);
  const int directory = ::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  const auto root = read_descriptor(self(), directory);
  ASSERT_TRUE(root);
  EXPECT_EQ(root->link, "/");
  EXPECT_EQ(root->flags & O_PATH, O_PATH);
  EXPECT_GT(root->mount_id, 0);
  ::close(directory);
  const auto numbers = list_descriptors(self());
  ASSERT_TRUE(numbers);
  EXPECT_NE(std::find(numbers->begin(), numbers->end(), fd), numbers->end());
  EXPECT_TRUE(std::is_sorted(numbers->begin(), numbers->end()));
  ::close(fd);
  const auto closed = read_descriptor(self(), fd);
  ASSERT_FALSE(closed);
  EXPECT_EQ(closed.error().kind, ErrorKind::failed);
  EXPECT_EQ(closed.error().code, ENOENT);
}

TEST(Procfs, EndedProcessIsGone) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(7);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  const auto zombie = read_stat(HostPid{pid});
  ASSERT_TRUE(zombie);
  EXPECT_EQ(zombie->state, 'Z');
  EXPECT_EQ(zombie->exit_code, 7 << 8);
  ::waitpid(pid, nullptr, 0);
  for (const auto& kind : {read_stat(HostPid{pid}).error().kind, read_maps(HostPid{pid}).error().kind,
                           list_threads(HostPid{pid}).error().kind, read_link(HostPid{pid}, "exe").error().kind})
    EXPECT_EQ(kind, ErrorKind::gone);
}

}  // namespace
}  // namespace godwit::kernel
