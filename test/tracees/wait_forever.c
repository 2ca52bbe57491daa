// Calls that wait without limit: read, write, readv, accept, recvfrom, recvmmsg, waitid, flock, F_SETLKW. None may
// return before it is served, and then with the right result.
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "tracee.h"

enum { KINDS = 9 };
static int empty[2], full[2], listener, udp, unlocked, locked;
static volatile bool over;
static struct sockaddr_in at;
static pid_t sleeper;

static long blocked(int kind) {
  static char page[65536];
  char byte;
  struct flock lock = {.l_type = F_WRLCK, .l_len = 10};
  struct mmsghdr message = {.msg_hdr = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1}};
  siginfo_t info;
  switch (kind) {
    case 0:
      return read(empty[0], &byte, 1);
    case 1:
      return write(full[1], page, 4096) == 4096;
    case 2:
      return readv(empty[0], &(struct iovec){&byte, 1}, 1);
    case 3:
      return accept(listener, NULL, NULL) >= 0;
    case 4:
      return recvfrom(udp, &byte, 1, 0, NULL, NULL);
    case 5:
      return recvmmsg(udp, &message, 1, 0, NULL);
    case 6:
      return waitid(P_PID, sleeper, &info, WEXITED | WNOWAIT) == 0 && info.si_status == 7;
    case 7:
      return flock(locked, LOCK_EX) == 0;
    default:
      return fcntl(locked, F_SETLKW, &lock) == 0;
  }
}
static void* work(void* kind) {
  long result = blocked((int)(intptr_t)kind);
  CHECK(result == 1, "call %ld: %ld %s", (intptr_t)kind, result, strerror(errno));
  CHECK(over, "call %ld ended too early", (intptr_t)kind);
  return NULL;
}
static int holder(void) {
  struct flock lock = {.l_type = F_WRLCK, .l_len = 10};
  MUST(fcntl(unlocked, F_SETLK, &lock));
  MUST(flock(unlocked, LOCK_EX));
  while (running_slowly()) {
  }
  close(unlocked);
  return 0;
}
static int wait_for_term(void) {
  while (!told_to_finish) pause_ms(50);
  _exit(7);
}

int main(void) {
  watch();
  socklen_t length = sizeof at;
  at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  MUST(pipe(empty));
  MUST(pipe(full));
  listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(bind(listener, (struct sockaddr*)&at, sizeof at));
  MUST(listen(listener, 5));
  MUST(getsockname(listener, (struct sockaddr*)&at, &length));
  udp = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  MUST(bind(udp, (struct sockaddr*)&at, sizeof at));
  MUST(fcntl(full[1], F_SETPIPE_SZ, 4096));
  MUST(write(full[1], (char[4096]){0}, 4096));
  unlocked = MUST(open("wait_forever.lock", O_RDWR | O_CREAT, 0600));
  pid_t lock_holder = child(holder);
  sleeper = child(wait_for_term);
  close(unlocked);
  locked = MUST(open("wait_forever.lock", O_RDWR));
  pause_ms(100);
  pthread_t threads[KINDS];
  for (intptr_t i = 0; i < KINDS; i++) threads[i] = thread(work, (void*)i);
  pause_ms(50);
  ready();
  while (running_slowly()) {
  }
  over = true;
  char page[4096];
  MUST(write(empty[1], "ab", 2));
  MUST(read(full[0], page, 4096));
  int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(client, (struct sockaddr*)&at, length));
  for (int i = 0; i < 2; i++)
    MUST(sendto(MUST(socket(AF_INET, SOCK_DGRAM, 0)), "x", 1, 0, (struct sockaddr*)&at, length));
  MUST(kill(sleeper, SIGTERM));
  finish_child(lock_holder);
  for (int i = 0; i < KINDS; i++) pthread_join(threads[i], NULL);
  return ok();
}
