// The three interval timers, real, virtual and profiling, and alarm()'s remainder in a child.
#include <sys/time.h>

#include "tracee.h"

static atomic_int ticks[3];
static void on_tick(int signal) {
  ticks[signal == SIGALRM ? 0 : signal == SIGVTALRM ? 1 : 2]++;
}
static int sleeper(void) {
  struct itimerval timer = {.it_value = {2000, 0}}, now;
  int64_t start = milliseconds();
  MUST(setitimer(ITIMER_REAL, &timer, NULL));
  while (running_slowly()) {
    MUST(getitimer(ITIMER_REAL, &now));
    int64_t left = now.it_value.tv_sec * 1000 + now.it_value.tv_usec / 1000,
            should = 2000000 - (milliseconds() - start);
    CHECK(labs(left - should) < 300, "%ld ms left, should be %ld", (long)left, (long)should);
  }
  return 0;
}

int main(void) {
  watch();
  const int kinds[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}, signals[] = {SIGALRM, SIGVTALRM, SIGPROF};
  // Seen from outside, a handler that runs just then looks like any other moment.
  struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART | SA_NODEFER};
  struct itimerval timer = {{0, 20000}, {0, 20000}}, now;
  for (int i = 0; i < 3; i++) MUST(sigaction(signals[i], &action, NULL));
  pid_t pid = child(sleeper);
  for (int i = 0; i < 3; i++) MUST(setitimer(kinds[i], &timer, NULL));
  ready();
  while (running()) {
    for (volatile int i = 0; i < 2000000; i++) {
    }
    for (int i = 0; i < 3; i++) {
      MUST(getitimer(kinds[i], &now));
      CHECK(now.it_interval.tv_usec == 20000 && now.it_value.tv_sec == 0, "timer %d is not what was set", i);
    }
  }
  for (int i = 0; i < 3; i++) {
    int before = ticks[i];
    for (int64_t end = milliseconds() + 10000; ticks[i] < before + 2;)
      CHECK(milliseconds() < end, "timer %d has stopped", i);
  }
  timer = (struct itimerval){0};
  for (int i = 0; i < 3; i++) MUST(setitimer(kinds[i], &timer, NULL));
  finish_child(pid);
  return ok();
}
