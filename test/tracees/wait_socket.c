// recv, accept and send with SO_RCVTIMEO and SO_SNDTIMEO: EAGAIN and never EINTR, when the time is over.
#include <netinet/in.h>
#include <sys/socket.h>

#include "tracee.h"

enum { MS = 1500, EARLY = 30, LATE = 700, KINDS = 5 };
static volatile bool over;

static int limited(int fd) {
  struct timeval limit = {MS / 1000, MS % 1000 * 1000};
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
  MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
  return fd;
}
static int tcp_listener(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(bind(fd, (struct sockaddr*)&address, sizeof address));
  MUST(listen(fd, 1));
  return fd;
}
static void* work(void* argument) {
  int kind = (int)(intptr_t)argument, pair[2], fd;
  char byte[4096] = {0};
  struct msghdr message = {.msg_iov = &(struct iovec){byte, 1}, .msg_iovlen = 1};
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  fd = limited(kind == 1 ? tcp_listener() : kind == 4 ? MUST(socket(AF_INET, SOCK_DGRAM, 0)) : pair[0]);
  if (kind == 3)
    while (send(fd, byte, sizeof byte, MSG_DONTWAIT) > 0) {  // until its buffer is full
    }
  pause_ms(kind * MS / KINDS);
  while (!over) {
    int64_t start = milliseconds();
    long result = kind == 1   ? accept(fd, NULL, NULL)
                  : kind == 2 ? recvmsg(fd, &message, 0)
                  : kind == 3 ? send(fd, byte, sizeof byte, 0)
                              : recv(fd, byte, 1, 0);
    int error = errno;
    int64_t took = milliseconds() - start;
    CHECK(result == -1 && error == EAGAIN, "call %d: %ld %s", kind, result, strerror(error));
    CHECK(took >= MS - EARLY && took < MS + LATE, "call %d of %d ms took %ld", kind, MS, (long)took);
  }
  return NULL;
}

int main(void) {
  watch();
  pthread_t threads[KINDS];
  for (intptr_t i = 0; i < KINDS; i++) threads[i] = thread(work, (void*)i);
  ready();
  while (running_slowly()) {
  }
  over = true;
  for (int i = 0; i < KINDS; i++) pthread_join(threads[i], NULL);
  return ok();
}
