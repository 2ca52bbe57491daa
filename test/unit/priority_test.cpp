#include "kernel/priority.hpp"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

namespace godwit::kernel {
namespace {

/// A child that waits to be killed.
class Sleeper {
 public:
  Sleeper() : pid_(::fork()) {
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (true) ::pause();
  }
  ~Sleeper() { end(); }
  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  [[nodiscard]] HostPid pid() const { return HostPid{pid_}; }

 private:
  pid_t pid_;
};

bool may_raise() {
  Sleeper sleeper;
  return RaisedPriority(sleeper.pid(), 1).raised();
}

TEST(Priority, RaisedAndPutBack) {
  if (!may_raise()) GTEST_SKIP() << "this machine refuses SCHED_FIFO";
  Sleeper sleeper;
  ASSERT_EQ(::setpriority(PRIO_PROCESS, static_cast<id_t>(sleeper.pid().value), 7), 0);
  const Policy batch{SCHED_BATCH | SCHED_RESET_ON_FORK, 0};
  ASSERT_TRUE(set_policy(sleeper.pid(), batch));
  {
    const RaisedPriority raised(sleeper.pid(), 20);
    EXPECT_TRUE(raised.raised());
    EXPECT_EQ(raised.before().policy, batch.policy);
    EXPECT_NE(raised.before().timer_slack, 0U);
    EXPECT_EQ(policy_of(sleeper.pid()).value(), (Policy{SCHED_FIFO | SCHED_RESET_ON_FORK, 20}));
  }
  EXPECT_EQ(policy_of(sleeper.pid()).value(), batch);
  EXPECT_EQ(::getpriority(PRIO_PROCESS, static_cast<id_t>(sleeper.pid().value)), 7);
}

TEST(Priority, OneThatIsHigherIsLeftAlone) {
  if (!may_raise()) GTEST_SKIP() << "this machine refuses SCHED_FIFO";
  Sleeper sleeper;
  const Policy high{SCHED_RR, 40};
  ASSERT_TRUE(set_policy(sleeper.pid(), high));
  const RaisedPriority raised(sleeper.pid(), 20);
  EXPECT_FALSE(raised.raised());
  EXPECT_EQ(policy_of(sleeper.pid()).value(), high);
}

TEST(Priority, WithoutThePrivilegeNothingChanges) {
  const pid_t unprivileged = ::fork();
  if (unprivileged == 0) {
    rlimit none{};
    ::setrlimit(RLIMIT_RTPRIO, &none);
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const RaisedPriority raised(HostPid{::getpid()}, 20);
    ::_exit(raised.raised() || ::sched_getscheduler(0) != SCHED_OTHER ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(unprivileged, &status, 0), unprivileged);
  EXPECT_EQ(status, 0);
}

TEST(Priority, ADeadThreadIsNothingToRestore) {
  Sleeper sleeper;
  std::optional<RaisedPriority> raised(std::in_place, sleeper.pid(), 20);
  const HostPid gone = sleeper.pid();
  sleeper.end();
  raised.reset();
  const auto policy = policy_of(gone);
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().kind, ErrorKind::gone);
  EXPECT_FALSE(RaisedPriority(gone, 20).raised());
}

/// The priority that the kernel gives a thread now, as /proc/PID/stat shows it: below -1 is a real-time one.
int effective_priority(HostPid tid) {
  std::ifstream file(fmt::format("/proc/{}/stat", tid.value));
  std::string text;
  std::getline(file, text);
  std::istringstream after(text.substr(text.rfind(')') + 2));
  std::string field;
  for (int number = 3; number <= 18; ++number) after >> field;
  return std::stoi(field);
}

TEST(Priority, WhoHoldsAMutexIsRaisedByWhoWaitsForIt) {
  if (!may_raise()) GTEST_SKIP() << "this machine refuses SCHED_FIFO";
  InheritingMutex mutex;
  const HostPid self{::gettid()};
  mutex.lock();
  EXPECT_GE(effective_priority(self), 0);
  std::thread waiting([&] {
    ASSERT_TRUE(set_policy(HostPid{::gettid()}, {SCHED_FIFO, 20, 0}));
    const std::scoped_lock lock(mutex);
  });
  for (int i = 0; i < 2000 && effective_priority(self) >= 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_LT(effective_priority(self), -1);
  mutex.unlock();
  waiting.join();
  EXPECT_GE(effective_priority(self), 0);
}

TEST(Priority, BackgroundLeavesTheClassAsItIsAndHalfOfTheProcessors) {
  std::thread background([] {
    const HostPid self{::gettid()};
    cpu_set_t before, after;
    ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
    work_in_background(self);
    ASSERT_EQ(::sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_EQ(CPU_COUNT(&after), CPU_COUNT(&before) - CPU_COUNT(&before) / 2);
    EXPECT_EQ(policy_of(self).value(), (Policy{SCHED_OTHER, 0}));
  });
  background.join();
}

}  // namespace
}  // namespace godwit::kernel
