// Pending signals: of the process and of a thread, with their values, senders and order, none twice.
#include "tracee.h"

enum { COUNT = 20 };
static sigset_t all;
static atomic_int step;

static void expect(const char* who, int signal, int code, int value) {
  siginfo_t info;
  struct timespec at_once = {0, 0};
  // Not through the C library, which shows SI_TKILL as SI_USER.
  int got = (int)syscall(SYS_rt_sigtimedwait, &all, &info, &at_once, 8);
  CHECK(got == signal, "%s: signal %d pending, should be %d (%s)", who, got, signal, got < 0 ? strerror(errno) : "");
  CHECK(info.si_code == code, "%s: si_code %d, should be %d", who, info.si_code, code);
  CHECK(info.si_pid == getpid() && info.si_uid == getuid(), "%s: sender %d", who, info.si_pid);
  if (code == SI_QUEUE)
    CHECK(info.si_value.sival_int == value, "%s: value %d, should be %d", who, info.si_value.sival_int, value);
}
static void nothing(const char* who) {
  struct timespec at_once = {0, 0};
  int got = sigtimedwait(&all, NULL, &at_once);
  CHECK(got == -1 && errno == EAGAIN, "%s: signal %d is pending once more", who, got);
}
static void* second(void* unused) {
  step = 1;
  while (step < 2) pause_ms(1);
  expect("thread", SIGUSR2, SI_TKILL, 0);
  for (int i = 0; i < COUNT; i++) expect("thread", SIGRTMIN + 5, SI_QUEUE, 1000 + i);
  nothing("thread");
  return unused;
}

int main(void) {
  watch();
  sigemptyset(&all);
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; signal++) sigaddset(&all, signal);
  sigaddset(&all, SIGUSR1);
  sigaddset(&all, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  pthread_t other = thread(second, NULL);
  while (step < 1) pause_ms(1);
  pthread_kill(other, SIGUSR2);
  for (int i = 0; i < COUNT; i++)
    CHECK(pthread_sigqueue(other, SIGRTMIN + 5, (union sigval){1000 + i}) == 0, "pthread_sigqueue");
  MUST(kill(getpid(), SIGUSR1));
  MUST(kill(getpid(), SIGUSR1));  // once pending is enough
  for (int i = 0; i < COUNT; i++) MUST(sigqueue(getpid(), SIGRTMIN + 1 + i % 2, (union sigval){i}));
  ready();
  while (running_slowly()) {
    sigset_t pending;
    MUST(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 2), "no longer pending");
  }
  expect("process", SIGUSR1, SI_USER, 0);
  for (int i = 0; i < COUNT; i += 2) expect("process", SIGRTMIN + 1, SI_QUEUE, i);
  for (int i = 1; i < COUNT; i += 2) expect("process", SIGRTMIN + 2, SI_QUEUE, i);
  step = 2;
  pthread_join(other, NULL);
  nothing("process");
  return ok();
}
