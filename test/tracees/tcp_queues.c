// TCP with data that nobody has read, data that couldn't be sent yet, and connections closed on one side.
#include <netinet/in.h>
#include <sys/socket.h>

#include "tracee.h"

static char page[4096];
static void connected(int ends[2]) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof at;
  int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(bind(listener, (struct sockaddr*)&at, sizeof at));
  MUST(listen(listener, 1));
  MUST(getsockname(listener, (struct sockaddr*)&at, &length));
  ends[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(ends[0], (struct sockaddr*)&at, length));
  ends[1] = MUST(accept(listener, NULL, NULL));
  close(listener);
}
/// Fills the connection until nothing more goes in; how many bytes that were.
static size_t stuff(int fd) {
  size_t total = 0;
  for (int quiet = 0; quiet < 20; quiet++) {
    ssize_t sent;
    while ((sent = send(fd, page + total % 4096, 4096 - total % 4096, MSG_DONTWAIT)) > 0) total += sent, quiet = 0;
    pause_ms(5);
  }
  return total;
}
static void drain(int fd, size_t total) {
  char back[4096];
  for (size_t got = 0; got < total;) {
    ssize_t now = recv(fd, back, 4096 - got % 4096, 0);
    if (now < 0 && errno == EINTR) continue;
    CHECK(now > 0, "the connection gave %zu bytes of %zu: %s", got, total, now ? strerror(errno) : "closed");
    CHECK(memcmp(back, page + got % 4096, now) == 0, "other bytes after %zu", got);
    got += now;
  }
}

int main(void) {
  watch();
  fill(page, 4096, 21);
  int both[2], closed[2], half[2], reset[2];
  connected(both), connected(closed), connected(half), connected(reset);
  size_t there = stuff(both[0]), back = stuff(both[1]);
  for (int i = 0; i < 8; i++)
    CHECK(send(closed[0], page, 4096, 0) == 4096 && send(half[0], page, 4096, 0) == 4096, "send");
  MUST(close(closed[0]));            // CLOSE_WAIT with unread data at the other end
  MUST(shutdown(half[0], SHUT_WR));  // FIN_WAIT2 here
  MUST(setsockopt(reset[0], SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
  MUST(close(reset[0]));  // the other end has ECONNRESET to report
  pause_ms(20);
  ready();
  while (running_slowly())
    CHECK(recv(half[0], page, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "half closed: %s", strerror(errno));
  drain(both[1], there);
  drain(both[0], back);
  for (int i = 0; i < 2; i++) {
    int fd = i ? half[1] : closed[1];
    drain(fd, 8 * 4096);
    ssize_t end = recv(fd, page, 1, 0);
    CHECK(end == 0, "%s: %zd (%s) instead of the end after the data", i ? "half closed" : "closed", end,
          strerror(errno));
  }
  CHECK(send(half[1], "answer", 6, 0) == 6 && recv(half[0], page, 6, MSG_WAITALL) == 6, "the half that is open");
  CHECK(recv(reset[1], page, 1, 0) == -1 && errno == ECONNRESET, "the reset is not reported");
  return ok();
}
