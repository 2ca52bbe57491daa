// TCP within the pod, both ends moved, IPv4 and IPv6: traffic both ways, options, addresses, a listener with
// connections waiting.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "tracee.h"

static int listener(int family, struct sockaddr_in6* address, socklen_t* length) {
  *length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof *address;
  memset(address, 0, sizeof *address);
  address->sin6_family = family;
  if (family == AF_INET6) address->sin6_addr = in6addr_loopback;
  if (family == AF_INET) ((struct sockaddr_in*)address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, 4));
  MUST(bind(fd, (struct sockaddr*)address, *length));
  MUST(listen(fd, 16));
  MUST(getsockname(fd, (struct sockaddr*)address, length));
  return fd;
}
static int option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = 4;
  MUST(getsockopt(fd, level, name, &value, &length));
  return value;
}
static void through(int from, int to, uint64_t turn, size_t size) {
  static char out[60000], in[60000];
  fill(out, size, turn);
  CHECK(send(from, out, size, 0) == (ssize_t)size, "send: %s", strerror(errno));
  for (size_t got = 0; got < size;) {
    ssize_t now = recv(to, in + got, size - got, 0);
    if (now < 0 && errno == EINTR) continue;
    CHECK(now > 0, "recv: %s", now ? strerror(errno) : "closed");
    got += now;
  }
  verify("stream", in, size & ~7ul, turn);
}

int main(void) {
  watch();
  enum { V = 2 };
  int families[V] = {AF_INET, AF_INET6}, listeners[V], clients[V], servers[V];
  struct sockaddr_in6 at[V], names[V], now;
  socklen_t lengths[V], length;
  for (int i = 0; i < V; i++) {
    listeners[i] = listener(families[i], &at[i], &lengths[i]);
    clients[i] = MUST(socket(families[i], SOCK_STREAM, 0));
    MUST(connect(clients[i], (struct sockaddr*)&at[i], lengths[i]));
    servers[i] = MUST(accept(listeners[i], NULL, NULL));
    MUST(setsockopt(clients[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, 4));
    MUST(setsockopt(clients[i], SOL_SOCKET, SO_KEEPALIVE, &(int){1}, 4));
    MUST(setsockopt(clients[i], IPPROTO_TCP, TCP_KEEPIDLE, &(int){123}, 4));
    MUST(setsockopt(servers[i], IPPROTO_TCP, TCP_USER_TIMEOUT, &(int){54321}, 4));
    length = sizeof names[i];
    MUST(getsockname(clients[i], (struct sockaddr*)&names[i], &length));
  }
  ready();
  for (uint64_t turn = 1; running(); turn++)
    for (int i = 0; i < V; i++) {
      through(clients[i], servers[i], turn, 8 + turn * 977 % 59000);
      through(servers[i], clients[i], turn + 1, 8 + turn * 613 % 59000);
      if (turn % 4 == 0) pause_ms(1);
    }
  for (int i = 0; i < V; i++) {
    char text[8];
    length = sizeof now;
    MUST(getpeername(servers[i], (struct sockaddr*)&now, &length));
    CHECK(now.sin6_port == names[i].sin6_port && now.sin6_family == families[i], "the peer's port is %d, was %d",
          ntohs(now.sin6_port), ntohs(names[i].sin6_port));
    CHECK(option(clients[i], IPPROTO_TCP, TCP_NODELAY) == 1 && option(clients[i], SOL_SOCKET, SO_KEEPALIVE) == 1,
          "options");
    CHECK(option(clients[i], IPPROTO_TCP, TCP_KEEPIDLE) == 123 &&
              option(servers[i], IPPROTO_TCP, TCP_USER_TIMEOUT) == 54321,
          "options of TCP");
    CHECK(option(listeners[i], SOL_SOCKET, SO_REUSEADDR) == 1 && option(listeners[i], SOL_SOCKET, SO_ACCEPTCONN) == 1,
          "the listener");
    CHECK(fcntl(listeners[i], F_GETFD) == FD_CLOEXEC, "close-on-exec");
    int again = MUST(socket(families[i], SOCK_STREAM, 0));
    MUST(connect(again, (struct sockaddr*)&at[i], lengths[i]));
    through(again, MUST(accept(listeners[i], NULL, NULL)), 5, 1000);
    CHECK(shutdown(clients[i], SHUT_WR) == 0 && recv(servers[i], text, 8, 0) == 0, "no end of the connection");
    through(servers[i], clients[i], 9, 1000);
  }
  return ok();
}
