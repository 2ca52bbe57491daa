#include "kernel/task_reader.hpp"

#include <gtest/gtest.h>
#include <linux/prctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <latch>
#include <thread>

#include "objects/thread_state.hpp"

namespace godwit {
namespace {

TEST(TaskReader, SaysWhatAThreadHasSet) {
  auto reader = kernel::TaskReader::open();
  if (!reader) GTEST_SKIP() << reader.error().message();
  alignas(16) static std::array<char, 64 * 1024> stack{};
  HostPid tid;
  std::uint64_t clear_tid = 0, robust = 0, robust_size = 0;
  std::latch set{1}, end{1};
  std::jthread thread([&] {
    tid = HostPid{::gettid()};
    ::prctl(PR_SET_NAME, "odd one");
    ::prctl(PR_SET_TIMERSLACK, 123'456UL);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_GET_TID_ADDRESS, &clear_tid);
    ::syscall(SYS_get_robust_list, 0, &robust, &robust_size);
    const std::array<gid_t, 40> groups = [] {
      std::array<gid_t, 40> many{};
      for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<gid_t>(1000 + i);
      return many;
    }();
    ::syscall(SYS_setgroups, groups.size(), groups.data());
    const stack_t wanted{.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
    ::sigaltstack(&wanted, nullptr);
    ::syscall(SYS_setresuid, 11, 12, 13);
    set.count_down();
    end.wait();
    const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
    ::sigaltstack(&none, nullptr);
    ::prctl(PR_SET_DUMPABLE, 1);
  });
  set.wait();
  const std::array<HostPid, 2> asked{tid, HostPid{::gettid()}};
  ASSERT_TRUE(reader->know(asked));
  const auto found = reader->read(asked);
  end.count_down();
  ASSERT_TRUE(found) << found.error().message();
  ASSERT_TRUE((*found)[0] && (*found)[1]);
  const auto settings = objects::settings_of(*(*found)[0], {});
  EXPECT_EQ(settings.name, "odd one");
  EXPECT_EQ(settings.timer_slack, 123'456U);
  EXPECT_TRUE(settings.no_new_privileges);
  EXPECT_EQ(settings.clear_tid, clear_tid);
  EXPECT_EQ(settings.robust_list, robust);
  EXPECT_EQ(settings.robust_size, robust_size);
  EXPECT_EQ(settings.stack_pointer, reinterpret_cast<std::uint64_t>(stack.data()));
  EXPECT_EQ(settings.stack_size, stack.size());
  EXPECT_EQ(settings.stack_flags, 0);
  EXPECT_EQ(settings.credentials.uids, (std::array<uid_t, 4>{11, 12, 13, 12}));
  ASSERT_EQ(settings.credentials.groups.size(), 40U);
  EXPECT_EQ(settings.credentials.groups.front(), 1000U);
  EXPECT_EQ(settings.credentials.groups.back(), 1039U);
  EXPECT_FALSE((*found)[0]->signals);
  // Changing credentials takes it away, as the program knows.
  EXPECT_EQ(settings.parent_death_signal, 0);
  const auto other = objects::settings_of(*(*found)[1], {});
  EXPECT_EQ(other.stack_flags, SS_DISABLE);
  EXPECT_NE(other.credentials, settings.credentials);
}

TEST(TaskReader, AThreadThatHasEndedIsNotAnother) {
  auto reader = kernel::TaskReader::open();
  if (!reader) GTEST_SKIP() << reader.error().message();
  HostPid tid;
  std::latch set{1}, end{1};
  std::thread thread([&] {
    tid = HostPid{::gettid()};
    set.count_down();
    end.wait();
  });
  set.wait();
  const std::array<HostPid, 1> asked{tid};
  ASSERT_TRUE(reader->know(asked));
  end.count_down();
  thread.join();
  while (::syscall(SYS_tgkill, ::getpid(), tid.value, 0) == 0) ::usleep(100);
  const auto found = reader->read(asked);
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_FALSE((*found)[0]);
}

}  // namespace
}  // namespace godwit
