// Unix stream sockets: queued data, listeners by path and abstract name, half closed, traffic
// all the time.
#include <sys/socket.h>
#include <sys/un.h>

#include "tracee.h"

static int pair[2];
static int echo(void) {
  char buffer[4096];
  close(pair[0]);
  for (;;) {
    ssize_t got = read(pair[1], buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0;
    for (ssize_t sent = 0, now; sent < got; sent += now)
      while ((now = write(pair[1], buffer + sent, got - sent)) < 0) CHECK(errno == EINTR, "echo: %s", strerror(errno));
  }
}
static int named(const char* name, bool listening) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@');
  strcpy(address.sun_path, name);
  if (name[0] == '@') address.sun_path[0] = 0;
  int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  if (listening) {
    if (name[0] != '@') unlink(name);
    MUST(bind(fd, (struct sockaddr*)&address, length));
    MUST(listen(fd, 5));
  } else {
    MUST(connect(fd, (struct sockaddr*)&address, length));
  }
  return fd;
}

int main(void) {
  watch();
  const char* names[] = {"unix_stream.socket", "@godwit unix_stream"};
  int listeners[2], queued[2], half[2];
  char page[4096], back[4096];
  MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, queued));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
  for (int i = 0; i < 2; i++) listeners[i] = named(names[i], true);
  for (int i = 0; i < 16; i++) {
    fill(page, 4096, i);
    MUST(write(queued[0], page, 4096));
    MUST(write(queued[1], page, 1000));
  }
  MUST(write(half[0], "the end", 7));
  MUST(shutdown(half[0], SHUT_WR));
  int full[2];
  size_t stuffed = 0;
  fill(page, 4096, 99);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, full));
  for (ssize_t sent; (sent = send(full[0], page, 3000, MSG_DONTWAIT)) > 0;) stuffed += sent;
  CHECK(recv(full[1], back, 1000, 0) == 1000, "the begin of the first of many");
  pid_t pid = child(echo);
  close(pair[1]);
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    CHECK(send(full[0], page, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "the full socket takes more");
    fill(page, 4096, turn);
    MUST(write(pair[0], page, 4096));
    for (size_t got = 0; got < 4096;) {
      ssize_t now = read(pair[0], back + got, 4096 - got);
      if (now < 0 && errno == EINTR) continue;
      CHECK(now > 0, "the echo has ended");
      got += now;
    }
    verify("echo", back, 4096, turn);
    if (turn % 16 == 0) pause_ms(1);
  }
  for (int i = 0; i < 16; i++) {
    CHECK(recv(queued[1], back, 4096, MSG_WAITALL) == 4096, "queued page %d", i);
    verify("queued", back, 4096, i);
    CHECK(recv(queued[0], back, 1000, MSG_WAITALL) == 1000, "queued page %d, the other way", i);
    verify("queued", back, 1000, i);
  }
  CHECK(recv(queued[1], back, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is queued than was sent");
  fill(page, 4096, 99);
  for (size_t at = 1000; at < stuffed; at++)
    CHECK(recv(full[1], back, 1, MSG_DONTWAIT) == 1 && back[0] == page[at % 3000], "byte %zu of %zu", at, stuffed);
  CHECK(recv(full[1], back, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is there than was stuffed in");
  CHECK(recv(half[1], back, 100, 0) == 7 && recv(half[1], back, 100, 0) == 0, "half closed");
  CHECK(send(half[1], "x", 1, MSG_NOSIGNAL) == 1 && recv(half[0], back, 1, 0) == 1, "the other half");
  for (int i = 0; i < 2; i++) {
    int client = named(names[i], false), fd = MUST(accept(listeners[i], NULL, NULL));
    CHECK(write(client, "late", 4) == 4 && recv(fd, back, 100, 0) == 4, "a connection made after the move");
  }
  struct ucred peer;
  socklen_t length = sizeof peer;
  MUST(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &length));
  CHECK(peer.pid == getpid(), "SO_PEERCRED says %d", peer.pid);
  close(pair[0]);
  int status;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the echo ended with status 0x%x", status);
  return ok();
}
