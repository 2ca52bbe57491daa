// peer: echo
// TCP with a machine that doesn't move and knows nothing: a connection that streams and one that asks and waits for
// each answer.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "tracee.h"

static struct sockaddr_in at = {.sin_family = AF_INET};
static volatile bool over;

static int connected(void) {
  int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(fd, (struct sockaddr*)&at, sizeof at));
  MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, 4));
  return fd;
}
static void receive(int fd, void* into, size_t size) {
  for (size_t got = 0; got < size;) {
    ssize_t now = recv(fd, (char*)into + got, size - got, 0);
    if (now < 0 && errno == EINTR) continue;
    CHECK(now > 0, "recv: %s", now ? strerror(errno) : "closed by the peer");
    got += now;
  }
}
static void* sender(void* fd) {
  char page[4096];
  uint64_t turn = 0;
  for (; !over; turn++) {
    fill(page, 4096, turn);
    for (size_t sent = 0; sent < 4096;) sent += MUST(send((int)(intptr_t)fd, page + sent, 4096 - sent, 0));
    if (turn % 8 == 0) pause_ms(1);
  }
  shutdown((int)(intptr_t)fd, SHUT_WR);
  return (void*)turn;
}
static void* receiver(void* fd) {  // what the sender sent comes back, then the end
  char page[4096];
  uint64_t turn = 0;
  while (recv((int)(intptr_t)fd, page, 1, MSG_PEEK) > 0) {
    receive((int)(intptr_t)fd, page, 4096);
    verify("echo of the stream", page, 4096, turn++);
  }
  return (void*)turn;
}

int main(int count, char** arguments) {
  watch();
  CHECK(count == 3 && inet_pton(AF_INET, arguments[1], &at.sin_addr) == 1, "usage: tcp_outside ADDRESS PORT");
  at.sin_port = htons(atoi(arguments[2]));
  int stream = connected(), asking = connected();
  pthread_t threads[2] = {thread(sender, (void*)(intptr_t)stream), thread(receiver, (void*)(intptr_t)stream)};
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    uint64_t back;
    CHECK(send(asking, &turn, 8, 0) == 8, "send: %s", strerror(errno));
    receive(asking, &back, 8);
    CHECK(back == turn, "asked %lu, answered %lu", turn, back);
  }
  over = true;
  void *sent, *received;
  pthread_join(threads[0], &sent);
  pthread_join(threads[1], &received);
  CHECK(sent == received, "%lu pages were sent, %lu came back", (uint64_t)sent, (uint64_t)received);
  close(connected());
  return ok();
}
