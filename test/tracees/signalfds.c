// signalfd: its mask, signals pending in it, a reader that waits, and one that is watched by epoll.
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "tracee.h"

int main(void) {
  watch();
  sigset_t mask, late;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGRTMIN + 3);
  sigemptyset(&late);
  sigaddset(&late, SIGUSR2);
  sigset_t both = mask;
  sigaddset(&both, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &both, NULL);
  int fd = MUST(signalfd(-1, &mask, SFD_CLOEXEC)), pending = MUST(signalfd(-1, &late, SFD_NONBLOCK)),
      epoll = MUST(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1122334455667788}, got;
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
  MUST(sigqueue(getpid(), SIGUSR2, (union sigval){31337}));
  ready();
  struct signalfd_siginfo info;
  for (int turn = 1; running(); turn++) {
    CHECK(epoll_wait(epoll, &got, 1, 0) == 0, "a signal is there before it was sent");
    if (turn % 2)
      MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){turn}));
    else
      MUST(kill(getpid(), SIGUSR1));
    CHECK(epoll_wait(epoll, &got, 1, 5000) == 1 && got.data.u64 == event.data.u64, "epoll doesn't see the signal: %s",
          strerror(errno));
    CHECK(read(fd, &info, sizeof info) == sizeof info, "read: %s", strerror(errno));
    CHECK((int)info.ssi_signo == (turn % 2 ? SIGRTMIN + 3 : SIGUSR1) && (turn % 2 == 0 || info.ssi_int == turn),
          "signal %d value %d", info.ssi_signo, info.ssi_int);
    pause_ms(1);
  }
  CHECK(read(pending, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2 && info.ssi_int == 31337,
        "the pending one is lost");
  CHECK(read(pending, &info, sizeof info) == -1 && errno == EAGAIN, "it is there twice");
  return ok();
}
