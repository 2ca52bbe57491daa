// Unix datagram and seqpacket sockets: queued messages with their borders and senders, connected and named ones.
#include <sys/socket.h>
#include <sys/un.h>

#include "tracee.h"

static struct sockaddr_un at(const char* name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(address.sun_path, name);
  return address;
}
static int bound(const char* name) {
  struct sockaddr_un address = at(name);
  int fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  unlink(name);
  MUST(bind(fd, (struct sockaddr*)&address, sizeof address));
  return fd;
}

int main(void) {
  watch();
  char text[4096];
  int server = bound("unix_dgram.server"), client = bound("unix_dgram.client"),
      nameless = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  struct sockaddr_un server_address = at("unix_dgram.server"), from;
  socklen_t length;
  int pairs[2][2], types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
  MUST(connect(client, (struct sockaddr*)&server_address, sizeof server_address));
  for (int i = 0; i < 2; i++) MUST(socketpair(AF_UNIX, types[i], 0, pairs[i]));
  for (int i = 1; i <= 5; i++) {
    MUST(send(client, "from the client", i, 0));
    for (int k = 0; k < 2; k++) MUST(send(pairs[k][0], "a message", i, 0));
  }
  MUST(sendto(nameless, "nameless", 8, 0, (struct sockaddr*)&server_address, sizeof server_address));
  MUST(send(pairs[1][0], "", 0, 0));
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++)
    for (int k = 0; k < 2; k++) {
      size_t size = 1 + turn % 4000;
      fill(text, sizeof text, turn);
      CHECK(send(pairs[k][1], text, size, 0) == (ssize_t)size, "send: %s", strerror(errno));
      memset(text, 0, sizeof text);
      CHECK(recv(pairs[k][0], text, sizeof text, 0) == (ssize_t)size, "a message has another length");
      verify("message", text, size & ~7ul, turn);
    }
  for (int i = 1; i <= 5; i++) {
    length = sizeof from;
    memset(&from, 0, sizeof from);
    CHECK(recvfrom(server, text, sizeof text, MSG_DONTWAIT, (struct sockaddr*)&from, &length) == i,
          "message %d to the server: %s", i, strerror(errno));
    CHECK(strcmp(from.sun_path, "unix_dgram.client") == 0, "its sender is '%s'", from.sun_path);
    for (int k = 0; k < 2; k++)
      CHECK(recv(pairs[k][1], text, sizeof text, MSG_DONTWAIT) == i, "queued message %d of type %d", i, types[k]);
  }
  length = sizeof from;
  CHECK(recvfrom(server, text, sizeof text, MSG_DONTWAIT, (struct sockaddr*)&from, &length) == 8 && length == 0,
        "from a nameless sender");
  CHECK(recv(pairs[1][1], text, sizeof text, MSG_DONTWAIT) == 0, "the empty message");
  CHECK(recv(server, text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more messages than were sent");
  MUST(send(client, "again", 5, 0));
  CHECK(recv(server, text, sizeof text, 0) == 5, "the client's connection");
  close(pairs[1][0]);
  CHECK(recv(pairs[1][1], text, 1, MSG_DONTWAIT) == 0, "no end of the seqpacket connection");
  return ok();
}
