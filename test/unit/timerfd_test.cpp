#include <poll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <csignal>

#include "object_fixture.hpp"
#include "objects/clocks.hpp"
#include "objects/common.hpp"

namespace godwit::objects::testing {
namespace {

constexpr std::int64_t second = 1'000'000'000;

Fd make_timer(int clock, int flags, std::int64_t value, std::int64_t interval = 0) {
  Fd fd{::timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK)};
  struct itimerspec setting {};
  setting.it_value = {.tv_sec = value / second, .tv_nsec = value % second};
  setting.it_interval = {.tv_sec = interval / second, .tv_nsec = interval % second};
  EXPECT_EQ(::timerfd_settime(fd.get(), flags, &setting, nullptr), 0);
  return fd;
}
std::int64_t remaining(int fd) {
  struct itimerspec setting {};
  EXPECT_EQ(::timerfd_gettime(fd, &setting), 0);
  return setting.it_value.tv_sec * second + setting.it_value.tv_nsec;
}
std::int64_t interval(int fd) {
  struct itimerspec setting {};
  EXPECT_EQ(::timerfd_gettime(fd, &setting), 0);
  return setting.it_interval.tv_sec * second + setting.it_interval.tv_nsec;
}
std::uint64_t wait_ticks(int fd) {
  struct pollfd state {
    .fd = fd, .events = POLLIN, .revents = 0
  };
  EXPECT_EQ(::poll(&state, 1, 5000), 1);
  std::uint64_t ticks = 0;
  EXPECT_EQ(::read(fd, &ticks, 8), 8);
  return ticks;
}

class Clocks : public ::testing::TestWithParam<std::tuple<int, int>> {};
TEST_P(Clocks, ExpireAtTheSameInstant) {
  const auto [clock, flags] = GetParam();
  const std::int64_t base = (flags & TFD_TIMER_ABSTIME) != 0 ? clock_now(clock) : 0;
  const Fd fd = make_timer(clock, flags, base + 100 * second, 7 * second);
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  const std::int64_t there = remaining(destination.built(0)), here = remaining(fd.get());
  EXPECT_NEAR(static_cast<double>(here), static_cast<double>(there), 5e6);
  EXPECT_EQ(interval(destination.built(0)), 7 * second);
  const auto info = read_info(destination.built(0)).value();
  EXPECT_EQ(info_number(info, "clockid"), static_cast<std::uint64_t>(clock));
  EXPECT_EQ(info_number(info, "settime flags", 8), static_cast<std::uint64_t>(flags));
  EXPECT_EQ(::fcntl(destination.built(0), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}
INSTANTIATE_TEST_SUITE_P(Timerfd, Clocks,
                         ::testing::Values(std::tuple{CLOCK_REALTIME, 0}, std::tuple{CLOCK_MONOTONIC, 0},
                                           std::tuple{CLOCK_BOOTTIME, 0},
                                           std::tuple{CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET},
                                           std::tuple{CLOCK_MONOTONIC, int(TFD_TIMER_ABSTIME)},
                                           std::tuple{CLOCK_BOOTTIME, int(TFD_TIMER_ABSTIME)}));

TEST(Timerfd, UnreadTicksOfAnExpiredTimer) {
  const Fd fd = make_timer(CLOCK_MONOTONIC, 0, 1);
  struct pollfd state {
    .fd = fd.get(), .events = POLLIN, .revents = 0
  };
  ASSERT_EQ(::poll(&state, 1, 5000), 1);
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(remaining(destination.built(0)), 0);
  EXPECT_EQ(wait_ticks(destination.built(0)), 1u);
}

TEST(Timerfd, PeriodsThatPassedMeanwhileCount) {
  const std::int64_t start = clock_now(CLOCK_MONOTONIC);
  for (const int flags : {0, int(TFD_TIMER_ABSTIME)}) {
    const std::int64_t base = flags != 0 ? clock_now(CLOCK_MONOTONIC) : 0;
    const Fd fd = make_timer(CLOCK_MONOTONIC, flags, base + 20'000'000, 20'000'000);
    TestSource source;
    source.add(fd.get());
    const auto images = capture_all(source);
    // The way between the nodes takes three periods.
    const Fd way = make_timer(CLOCK_MONOTONIC, 0, 65'000'000);
    wait_ticks(way.get());
    TestDestination destination;
    build_all(images, destination);
    const std::uint64_t here = wait_ticks(fd.get()), there = wait_ticks(destination.built(0));
    EXPECT_GE(here, 3u);
    if (clock_now(CLOCK_MONOTONIC) - start < second) {
      EXPECT_NEAR(static_cast<double>(here), static_cast<double>(there), 1);
    }
  }
}

TEST(Timerfd, DisarmedStaysDisarmed) {
  const Fd fd = make_timer(CLOCK_MONOTONIC, 0, 0);
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(remaining(destination.built(0)), 0);
  std::uint64_t ticks = 0;
  EXPECT_EQ(::read(destination.built(0), &ticks, 8), -1);
}

TEST(Signalfd, MaskAndFlags) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGRTMIN + 3);
  const Fd fd{::signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC)};
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  sigset_t before;
  ::pthread_sigmask(SIG_BLOCK, &mask, &before);
  ::raise(SIGUSR1);
  struct signalfd_siginfo info {};
  EXPECT_EQ(::read(destination.built(0), &info, sizeof info), static_cast<ssize_t>(sizeof info));
  EXPECT_EQ(info.ssi_signo, static_cast<unsigned>(SIGUSR1));
  EXPECT_EQ(::read(destination.built(0), &info, sizeof info), -1);
  EXPECT_EQ(errno, EAGAIN);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(info_field(read_info(fd.get()).value(), "sigmask"),
            info_field(read_info(destination.built(0)).value(), "sigmask"));
}

TEST(Common, OwnerSignalAndAsync) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd reader{ends[0]}, writer{ends[1]};
  ASSERT_EQ(::fcntl(ends[0], F_SETOWN, ::getpid()), 0);
  ASSERT_EQ(::fcntl(ends[0], F_SETSIG, SIGURG), 0);
  ASSERT_EQ(::fcntl(ends[0], F_SETFL, O_ASYNC), 0);
  TestSource source;
  source.add(ends[0]);
  source.add(ends[1]);
  const auto common = capture_common(source.all[0], source).value();
  EXPECT_FALSE(common.empty());
  EXPECT_TRUE(capture_common(source.all[1], source).value().empty());
  TestDestination destination;
  build_all(capture_all(source), destination);
  const auto unpacked = image::unpack<Common>(image::pack(common)).value();
  ASSERT_TRUE(apply_common(unpacked, destination.built(0), destination));
  EXPECT_EQ(::fcntl(destination.built(0), F_GETOWN), ::getpid());
  EXPECT_EQ(::fcntl(destination.built(0), F_GETSIG), SIGURG);
  EXPECT_NE(::fcntl(destination.built(0), F_GETFL) & O_ASYNC, 0);
  source.outside = true;
  const auto refused = capture_common(source.all[0], source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
}

}  // namespace
}  // namespace godwit::objects::testing
