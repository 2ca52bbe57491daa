// A server that writes memory all the time: it answers each line with the line and how many it has had on that
// connection, so that whoever asks finds what is lost, repeated or old. The port is its argument; any without one.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "tracee.h"

enum { PAGES = 2048, BYTES = PAGES * 4096, CONNECTIONS = 16, LINE = 256 };

typedef struct {
  size_t have;
  uint64_t count;
  char line[LINE];
} Connection;

static int listener;

/// Takes what has come and answers each whole line. False when the peer has closed.
static bool serve(int fd, Connection* connection) {
  ssize_t got = recv(fd, connection->line + connection->have, LINE - connection->have, 0);
  if (got <= 0) {
    CHECK(got == 0 || errno == EINTR || errno == ECONNRESET, "recv: %s", strerror(errno));
    return got < 0 && errno == EINTR;
  }
  connection->have += got;
  for (char* end; (end = memchr(connection->line, '\n', connection->have));) {
    char answer[LINE + 32];
    size_t length = end - connection->line;
    int size = snprintf(answer, sizeof answer, "%.*s %lu\n", (int)length, connection->line, ++connection->count);
    for (int sent = 0; sent < size;) {
      ssize_t now = send(fd, answer + sent, size - sent, MSG_NOSIGNAL);
      CHECK(now > 0 || errno == EINTR || errno == EPIPE || errno == ECONNRESET, "send: %s", strerror(errno));
      if (now < 0 && errno != EINTR) return false;
      sent += now > 0 ? now : 0;
    }
    connection->have -= length + 1;
    memmove(connection->line, end + 1, connection->have);
  }
  CHECK(connection->have < LINE, "a line without end");
  return true;
}

static void* server(void* unused) {
  struct pollfd fds[CONNECTIONS + 1] = {{.fd = listener, .events = POLLIN}};
  Connection connections[CONNECTIONS];
  int used = 0;
  for (;;) {
    // A full house lets nobody in.
    fds[0].events = used < CONNECTIONS ? POLLIN : 0;
    if (poll(fds, used + 1, -1) < 0) CHECK(errno == EINTR, "poll: %s", strerror(errno));
    for (int i = used; i > 0; i--) {
      if (fds[i].revents == 0 || serve(fds[i].fd, &connections[i - 1])) continue;
      close(fds[i].fd);
      fds[i] = fds[used];
      connections[i - 1] = connections[--used];
    }
    if ((fds[0].revents & POLLIN) == 0) continue;
    fds[++used] = (struct pollfd){.fd = MUST(accept(listener, NULL, NULL)), .events = POLLIN};
    connections[used - 1] = (Connection){0};
  }
  return unused;
}

int main(int count, char** arguments) {
  watch();
  listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? atoi(arguments[1]) : 0)};
  MUST(bind(listener, (struct sockaddr*)&at, sizeof at));
  MUST(listen(listener, CONNECTIONS));
  char* written = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  char* fixed = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  uint64_t turns[PAGES] = {0};
  for (int i = 0; i < PAGES; i++) fill(written + i * 4096, 4096, i);
  fill(fixed, BYTES, 7);
  thread(server, NULL);
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++)
    for (int i = 0; i < 64; i++) {
      int page = pattern(turn, i) % PAGES;
      verify("written", written + page * 4096, 4096, page + turns[page]);
      fill(written + page * 4096, 4096, page + (turns[page] = turn));
    }
  for (int i = 0; i < PAGES; i++) verify("written", written + i * 4096, 4096, i + turns[i]);
  verify("fixed", fixed, BYTES, 7);
  return ok();
}
