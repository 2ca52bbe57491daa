// UDP: bound and connected sockets, queued datagrams with their senders, options, IPv4 and IPv6.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "tracee.h"

static int bound(int family, struct sockaddr_in6* address, socklen_t* length) {
  *length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof *address;
  memset(address, 0, sizeof *address);
  address->sin6_family = family;
  if (family == AF_INET6) address->sin6_addr = in6addr_loopback;
  if (family == AF_INET) ((struct sockaddr_in*)address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = MUST(socket(family, SOCK_DGRAM, 0));
  MUST(bind(fd, (struct sockaddr*)address, *length));
  MUST(getsockname(fd, (struct sockaddr*)address, length));
  return fd;
}

int main(void) {
  watch();
  int families[] = {AF_INET, AF_INET6}, servers[2], clients[2], queues[2];
  struct sockaddr_in6 at[2], client_at[2], queue_at[2], from;
  socklen_t length;
  char text[2048];
  for (int i = 0; i < 2; i++) {
    servers[i] = bound(families[i], &at[i], &length);
    clients[i] = bound(families[i], &client_at[i], &length);
    MUST(connect(clients[i], (struct sockaddr*)&at[i], length));
    queues[i] = bound(families[i], &queue_at[i], &length);
    MUST(setsockopt(servers[i], SOL_SOCKET, SO_BROADCAST, &(int){1}, 4));
    for (int k = 1; k <= 10; k++) {
      fill(text, 1024, k);
      CHECK(sendto(clients[i], text, 100 * k, 0, (struct sockaddr*)&queue_at[i], length) == 100 * k, "sendto: %s",
            strerror(errno));
    }
  }
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++)
    for (int i = 0; i < 2; i++) {
      CHECK(send(clients[i], &turn, 8, 0) == 8, "send: %s", strerror(errno));
      length = sizeof from;
      uint64_t got;
      CHECK(recvfrom(servers[i], &got, 8, 0, (struct sockaddr*)&from, &length) == 8 && got == turn,
            "received another datagram");
      CHECK(from.sin6_port == client_at[i].sin6_port, "from port %d", ntohs(from.sin6_port));
      CHECK(sendto(servers[i], &turn, 8, 0, (struct sockaddr*)&from, length) == 8, "sendto: %s", strerror(errno));
      CHECK(recv(clients[i], &got, 8, 0) == 8 && got == turn, "answered with another datagram");
    }
  for (int i = 0; i < 2; i++) {
    for (int k = 1; k <= 10; k++) {
      length = sizeof from;
      CHECK(recvfrom(queues[i], text, sizeof text, MSG_DONTWAIT, (struct sockaddr*)&from, &length) == 100 * k,
            "queued datagram %d: %s", k, strerror(errno));
      CHECK(from.sin6_port == client_at[i].sin6_port, "its sender is port %d, should be %d", ntohs(from.sin6_port),
            ntohs(client_at[i].sin6_port));
      verify("datagram", text, 100 * k & ~7, k);
    }
    CHECK(recv(queues[i], text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "a datagram was doubled");
    int broadcast = 0;
    length = 4;
    MUST(getsockopt(servers[i], SOL_SOCKET, SO_BROADCAST, &broadcast, &length));
    CHECK(broadcast == 1, "SO_BROADCAST is gone");
  }
  return ok();
}
