// eventfd: value, semaphore mode, non-blocking, shared with a child that waits for it.
#include <sys/eventfd.h>

#include "tracee.h"

static int ping, pong;
static int second(void) {
  uint64_t value;
  while (!told_to_finish) {
    ssize_t got = read(ping, &value, 8);
    if (got < 0 && errno == EINTR) continue;
    CHECK(got == 8, "read: %s", strerror(errno));
    if (value == 1u << 30) return 0;
    same_process();
    CHECK(write(pong, &value, 8) == 8, "write: %s", strerror(errno));
  }
  return 0;
}

int main(void) {
  watch();
  int counter = MUST(eventfd(12345, EFD_NONBLOCK | EFD_CLOEXEC)),
      semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
  int full = MUST(eventfd(0, EFD_NONBLOCK));
  uint64_t value = UINT64_MAX - 1;
  MUST(write(full, &value, 8));
  ping = MUST(eventfd(0, 0)), pong = MUST(eventfd(0, 0));
  pid_t pid = child(second);
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    value = turn % 1000 + 1;
    MUST(write(ping, &value, 8));
    uint64_t back;
    while (read(pong, &back, 8) < 0) CHECK(errno == EINTR, "read: %s", strerror(errno));
    CHECK(back == value, "sent %lu, got %lu", value, back);
    if (turn % 8 == 0) pause_ms(1);
  }
  CHECK(read(counter, &value, 8) == 8 && value == 12345, "the counter has %lu", value);
  CHECK(read(counter, &value, 8) == -1 && errno == EAGAIN, "the counter is not empty");
  for (int i = 0; i < 3; i++) CHECK(read(semaphore, &value, 8) == 8 && value == 1, "the semaphore gives %lu", value);
  CHECK(read(semaphore, &value, 8) == -1 && errno == EAGAIN, "the semaphore has more than 3");
  value = 1;
  CHECK(write(full, &value, 8) == -1 && errno == EAGAIN, "the full one is not full");
  CHECK(fcntl(counter, F_GETFD) == FD_CLOEXEC, "close-on-exec");
  value = 1u << 30;
  MUST(write(ping, &value, 8));
  int status;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the child ended with status 0x%x", status);
  return ok();
}
