// may-refuse: not accepted yet
// Connections that wait to be accepted, with what they have sent already.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "tracee.h"

enum { COUNT = 5 };

int main(void) {
  watch();
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from, mine;
  socklen_t length = sizeof at;
  int listener = MUST(socket(AF_INET, SOCK_STREAM, 0)), clients[COUNT];
  char text[16];
  MUST(bind(listener, (struct sockaddr*)&at, sizeof at));
  MUST(listen(listener, COUNT));
  MUST(getsockname(listener, (struct sockaddr*)&at, &length));
  for (int i = 0; i < COUNT; i++) {
    clients[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(clients[i], (struct sockaddr*)&at, sizeof at));
    CHECK(send(clients[i], "early words", i + 1, 0) == i + 1, "send: %s", strerror(errno));
  }
  ready();
  while (running_slowly())
    for (int i = 0; i < COUNT; i++)
      CHECK(recv(clients[i], text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s", strerror(errno));
  for (int i = 0; i < COUNT; i++) {
    length = sizeof from;
    int fd = MUST(accept(listener, (struct sockaddr*)&from, &length));
    length = sizeof mine;
    MUST(getsockname(clients[i], (struct sockaddr*)&mine, &length));
    CHECK(from.sin_port == mine.sin_port, "accepted port %d, should be %d", ntohs(from.sin_port), ntohs(mine.sin_port));
    CHECK(recv(fd, text, sizeof text, 0) == i + 1, "what was sent before accept()");
    CHECK(send(fd, "answer", 6, 0) == 6 && recv(clients[i], text, 16, 0) == 6, "the answer");
  }
  return ok();
}
