// may-refuse: not accepted yet
// Unix connections that wait to be accepted, with what they have sent already.
#include <sys/socket.h>
#include <sys/un.h>

#include "tracee.h"

enum { COUNT = 5 };

int main(void) {
  watch();
  struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "unix_backlog.socket"};
  int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), clients[COUNT];
  char text[16];
  unlink(at.sun_path);
  MUST(bind(listener, (struct sockaddr*)&at, sizeof at));
  MUST(listen(listener, COUNT));
  for (int i = 0; i < COUNT; i++) {
    clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(clients[i], (struct sockaddr*)&at, sizeof at));
    CHECK(send(clients[i], "early words", i + 1, 0) == i + 1, "send: %s", strerror(errno));
  }
  ready();
  while (running_slowly())
    for (int i = 0; i < COUNT; i++)
      CHECK(recv(clients[i], text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s", strerror(errno));
  for (int i = 0; i < COUNT; i++) {
    int fd = MUST(accept(listener, NULL, NULL));
    struct ucred peer;
    socklen_t length = sizeof peer;
    CHECK(recv(fd, text, sizeof text, 0) == i + 1, "what was sent before accept()");
    CHECK(send(fd, "answer", 6, 0) == 6 && recv(clients[i], text, 16, 0) == 6, "the answer");
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    CHECK(peer.pid == getpid(), "SO_PEERCRED says %d", peer.pid);
  }
  return ok();
}
