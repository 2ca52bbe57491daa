// timerfd: relative, absolute, periodic, expired but unread, disarmed, on three clocks; waited for in read().
#include <sys/timerfd.h>

#include "tracee.h"

enum { PERIOD = 10 };
static int64_t begun;
static int make(clockid_t clock, int flags, int64_t first_ms, int64_t interval_ms, int absolute) {
  struct itimerspec spec = {{interval_ms / 1000, interval_ms % 1000 * 1000000},
                            {first_ms / 1000, first_ms % 1000 * 1000000}};
  int fd = MUST(timerfd_create(clock, flags));
  MUST(timerfd_settime(fd, absolute, &spec, NULL));
  return fd;
}
static int64_t left(int fd) {
  struct itimerspec spec;
  MUST(timerfd_gettime(fd, &spec));
  return spec.it_value.tv_sec * 1000 + spec.it_value.tv_nsec / 1000000;
}
static void near(const char* what, int64_t is, int64_t should) {
  CHECK(labs(is - should) < 300, "%s: %ld ms left, should be %ld", what, (long)is, (long)should);
}

int main(void) {
  watch();
  begun = milliseconds();
  int ticking = make(CLOCK_MONOTONIC, TFD_CLOEXEC, PERIOD, PERIOD, 0);
  int unread = make(CLOCK_BOOTTIME, TFD_NONBLOCK, 1, 0, 0);
  int relative = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 3600000, 0, 0),
      absolute = make(CLOCK_MONOTONIC, 0, begun + 3600000, 7000, TFD_TIMER_ABSTIME);
  int real = make(CLOCK_REALTIME, 0, nanoseconds(CLOCK_REALTIME) / 1000000 + 1800000, 0, TFD_TIMER_ABSTIME);
  int disarmed = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 0, 0);
  pause_ms(10);
  ready();
  uint64_t ticks = 0, value;
  while (running()) {
    if (read(ticking, &value, 8) < 0) {
      CHECK(errno == EINTR, "read: %s", strerror(errno));
      continue;
    }
    ticks += value;
    int64_t age = milliseconds() - begun;
    CHECK(labs((int64_t)ticks - age / PERIOD) < 30, "%lu ticks of %d ms in %ld ms", ticks, PERIOD, (long)age);
    near("relative", left(relative), 3600000 - age);
    near("absolute", left(absolute), 3600000 - age);
    near("real", left(real), 1800000 - age);
    CHECK(left(disarmed) == 0 && read(disarmed, &value, 8) == -1 && errno == EAGAIN, "the disarmed one runs");
  }
  struct itimerspec spec;
  MUST(timerfd_gettime(absolute, &spec));
  CHECK(spec.it_interval.tv_sec == 7, "interval %ld", (long)spec.it_interval.tv_sec);
  CHECK(read(unread, &value, 8) == 8 && value == 1, "expired and unread: %s", strerror(errno));
  CHECK(read(unread, &value, 8) == -1 && errno == EAGAIN, "it expired twice");
  CHECK(fcntl(ticking, F_GETFD) == FD_CLOEXEC, "close-on-exec");
  return ok();
}
