#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>

#include "object_fixture.hpp"

namespace godwit::objects::testing {
namespace {

class Pidfd : public ::testing::Test {
 protected:
  void SetUp() override {
    child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) ::pause();
    }
    fd = Fd(static_cast<int>(::syscall(SYS_pidfd_open, child, O_NONBLOCK)));
    ASSERT_TRUE(fd);
    source.add(fd.get());
  }
  void TearDown() override { reap(); }
  void reap() {
    if (child <= 0) return;
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    child = -1;
  }
  pid_t child = -1;
  Fd fd;
  TestSource source;
  TestDestination destination;
};

TEST_F(Pidfd, NamesTheSameProcess) {
  build_all(capture_all(source), destination);
  EXPECT_EQ(::fcntl(destination.built(0), F_GETFL), ::fcntl(fd.get(), F_GETFL));
  ASSERT_EQ(::syscall(SYS_pidfd_send_signal, destination.built(0), SIGKILL, nullptr, 0), 0);
  struct pollfd state {
    .fd = destination.built(0), .events = POLLIN, .revents = 0
  };
  EXPECT_EQ(::poll(&state, 1, 5000), 1);
}

TEST_F(Pidfd, ProcessOutsideThePodIsRefused) {
  source.outside = true;
  EXPECT_FALSE(pidfd_kind.preflight(source.all[0], source));
}

TEST_F(Pidfd, ProcessThatIsGoneIsRefused) {
  reap();
  EXPECT_FALSE(pidfd_kind.preflight(source.all[0], source));
}

}  // namespace
}  // namespace godwit::objects::testing
