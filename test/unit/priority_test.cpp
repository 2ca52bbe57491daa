#include "kernel/priority.hpp"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

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

}  // namespace
}  // namespace godwit::kernel
