// Waiting for signals: sigtimedwait ends in time with EAGAIN; sigwaitinfo, sigsuspend and pause end only by the signal.
#include "tracee.h"

enum { MS = 1500, EARLY = 30, LATE = 700 };
static volatile bool over;
static volatile sig_atomic_t caught;
static void on_signal(int signal) {
  caught = signal;
}

static void* timed(void* unused) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  while (!over) {
    struct timespec limit = {MS / 1000, MS % 1000 * 1000000};
    int64_t start = milliseconds();
    int result = sigtimedwait(&set, NULL, &limit), error = errno;
    int64_t took = milliseconds() - start;
    CHECK(result == -1 && error == EAGAIN, "sigtimedwait: %d %s", result, strerror(error));
    CHECK(took >= MS - EARLY && took < MS + LATE, "sigtimedwait of %d ms took %ld", MS, (long)took);
  }
  return unused;
}
static int waiter(int kind) {
  sigset_t set, none;
  sigfillset(&set);
  sigemptyset(&none);
  sigprocmask(kind == 2 ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
  struct sigaction action = {.sa_handler = on_signal};
  MUST(sigaction(SIGUSR1, &action, NULL));
  sigaddset(&none, SIGTERM);
  int got = 0;
  if (kind == 0) {
    siginfo_t info;
    sigdelset(&set, SIGTERM);
    got = sigwaitinfo(&set, &info);
    CHECK(got == SIGUSR1 && info.si_pid == getppid(), "sigwaitinfo: %d %s", got, strerror(errno));
    return 0;
  }
  got = kind == 1 ? sigsuspend(&none) : pause();
  CHECK(got == -1 && errno == EINTR && caught == SIGUSR1, "waiting for a signal ended without one (%d)", caught);
  return 0;
}
static int first(void) {
  return waiter(0);
}
static int second(void) {
  return waiter(1);
}
static int third(void) {
  return waiter(2);
}

int main(void) {
  watch();
  pid_t pids[3] = {child(first), child(second), child(third)};
  pthread_t other = thread(timed, NULL);
  pause_ms(100);
  ready();
  while (running_slowly()) CHECK(waitpid(-1, NULL, WNOHANG) == 0, "a child's waiting ended");
  for (int i = 0; i < 3; i++) {
    int status;
    MUST(kill(pids[i], SIGUSR1));
    CHECK(waitpid(pids[i], &status, 0) == pids[i] && status == 0, "child %d ended with status 0x%x", i, status);
  }
  over = true;
  pthread_join(other, NULL);
  return ok();
}
