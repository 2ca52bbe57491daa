// Waiting for descriptors with a time limit: poll, ppoll, select, pselect, epoll_wait, epoll_pwait2; and for ever,
// until data come.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

#include "tracee.h"

enum { MS = 1500, EARLY = 30, LATE = 700, KINDS = 6 };
static volatile bool over;
static int quiet[2], woken[2];

/// An epoll that watches the descriptor.
static int watching(int fd) {
  struct epoll_event event = {.events = EPOLLIN};
  int epoll = MUST(epoll_create1(0));
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
  return epoll;
}
static int quiet_epoll, woken_epoll;

static long wait_for(int kind, int fd, int ms) {
  struct pollfd entry = {.fd = fd, .events = POLLIN};
  struct timespec limit = {ms / 1000, ms % 1000 * 1000000};
  struct timeval old = {ms / 1000, ms % 1000 * 1000};
  struct epoll_event got;
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  if (kind == 0) return poll(&entry, 1, ms);
  if (kind == 1) return ppoll(&entry, 1, ms < 0 ? NULL : &limit, NULL);
  if (kind == 2) return select(fd + 1, &set, NULL, NULL, ms < 0 ? NULL : &old);
  if (kind == 3) return pselect(fd + 1, &set, NULL, NULL, ms < 0 ? NULL : &limit, NULL);
  int epoll = fd == quiet[0] ? quiet_epoll : woken_epoll;
  if (kind == 4) return epoll_wait(epoll, &got, 1, ms);
  return syscall(SYS_epoll_pwait2, epoll, &got, 1, ms < 0 ? NULL : &limit, NULL, 8);
}
static void* timed(void* argument) {
  int kind = (int)(intptr_t)argument;
  pause_ms(kind * MS / KINDS);
  while (!over) {
    int64_t start = milliseconds();
    long result = wait_for(kind, quiet[0], MS);
    int64_t took = milliseconds() - start;
    CHECK(result == 0, "wait %d: %ld %s", kind, result, result < 0 ? strerror(errno) : "");
    CHECK(took >= MS - EARLY && took < MS + LATE, "wait %d of %d ms took %ld", kind, MS, (long)took);
  }
  return NULL;
}
static void* for_ever(void* argument) {
  long result = wait_for((int)(intptr_t)argument, woken[0], -1);
  CHECK(result == 1, "wait %ld: %ld %s", (intptr_t)argument, result, result < 0 ? strerror(errno) : "");
  CHECK(over, "wait %ld ended too early", (intptr_t)argument);
  return NULL;
}

int main(void) {
  watch();
  MUST(pipe(quiet));
  MUST(pipe(woken));
  quiet_epoll = watching(quiet[0]);
  woken_epoll = watching(woken[0]);
  pthread_t threads[2 * KINDS];
  for (intptr_t i = 0; i < KINDS; i++) {
    threads[i] = thread(timed, (void*)i);
    threads[KINDS + i] = thread(for_ever, (void*)i);
  }
  ready();
  while (running_slowly()) {
  }
  over = true;
  MUST(write(woken[1], "x", 1));
  for (int i = 0; i < 2 * KINDS; i++) pthread_join(threads[i], NULL);
  return ok();
}
