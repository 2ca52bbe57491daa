// epoll: registrations with their events and data, level, edge and one-shot, nested, through duplicated and closed
// numbers.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "tracee.h"

enum { COUNT = 300 };
static int epoll, events[COUNT], reader = -1, writer = -1;

static void add(int to, int fd, uint32_t what, uint64_t data) {
  struct epoll_event event = {.events = what, .data.u64 = data};
  MUST(epoll_ctl(to, EPOLL_CTL_ADD, fd, &event));
}
static uint64_t poll_one(int from, int limit) {
  struct epoll_event got = {0};
  int count;
  while ((count = epoll_wait(from, &got, 1, limit)) < 0) CHECK(errno == EINTR, "epoll_wait: %s", strerror(errno));
  return count == 0 ? 0 : got.data.u64;
}
static void set(int fd, uint64_t value) {
  CHECK(write(fd, &value, 8) == 8, "write: %s", strerror(errno));
}
static void clear(int fd) {
  uint64_t value;
  CHECK(read(fd, &value, 8) == 8, "read: %s", strerror(errno));
}

int main(void) {
  watch();
  int ends[2], outer = MUST(epoll_create1(EPOLL_CLOEXEC)), edge = MUST(eventfd(0, EFD_NONBLOCK)),
               once = MUST(eventfd(1, EFD_NONBLOCK));
  epoll = MUST(epoll_create1(0));
  for (int i = 0; i < COUNT; i++) add(epoll, events[i] = MUST(eventfd(0, EFD_NONBLOCK)), EPOLLIN, pattern(i, 1));
  add(outer, epoll, EPOLLIN, 777);
  add(outer, edge, EPOLLIN | EPOLLET, 888);
  add(outer, once, EPOLLIN | EPOLLONESHOT, 999);
  CHECK(poll_one(outer, 1000) == 999, "one shot");  // used up now
  set(edge, 1);
  CHECK(poll_one(outer, 1000) == 888, "edge");  // reported now
  MUST(pipe2(ends, O_NONBLOCK));
  reader = ends[0], writer = ends[1];
  add(epoll, writer, EPOLLERR, 4242);  // never ready, until its reader is gone
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    int i = turn % COUNT;
    CHECK(poll_one(epoll, 0) == 0, "ready before it was set");
    set(events[i], turn);
    uint64_t which = poll_one(outer, 5000);
    if (which == 888)
      which = poll_one(outer, 5000);  // an edge may be reported once more after a move, as it may at any time
    CHECK(which == 777, "the nested one is silent");
    uint64_t data = poll_one(epoll, 5000);
    CHECK(data == pattern(i, 1), "event %d has data %lx, should be %lx", i, (long)data, (long)pattern(i, 1));
    clear(events[i]);
    if (turn % 16 == 0) pause_ms(1);
  }
  struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 1000};
  MUST(epoll_ctl(outer, EPOLL_CTL_MOD, once, &again));
  CHECK(poll_one(outer, 1000) == 1000, "re-armed one shot");
  set(edge, 1);
  CHECK(poll_one(outer, 1000) == 888, "edge after a write");
  MUST(close(reader));
  CHECK(poll_one(epoll, 1000) == 4242, "the closed pipe is not reported");
  MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, events[5], NULL));
  CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, events[5], NULL) == -1 && errno == ENOENT, "deleted twice");
  return ok();
}
