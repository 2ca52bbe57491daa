// POSIX timers: ids, intervals, what is left, values; one of them already pending with overruns.
#include "tracee.h"

static atomic_int ticks;
static int64_t started;

static void on_tick(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)context;
  CHECK(info->si_code == SI_TIMER && info->si_value.sival_int == 4711, "code %d value %d", info->si_code,
        info->si_value.sival_int);
  ticks += 1 + info->si_overrun;
}
static timer_t make(clockid_t clock, int signal, int value, int64_t first_ms, int64_t interval_ms) {
  struct sigevent event = {
      .sigev_notify = signal ? SIGEV_SIGNAL : SIGEV_NONE, .sigev_signo = signal, .sigev_value.sival_int = value};
  struct itimerspec spec = {{interval_ms / 1000, interval_ms % 1000 * 1000000},
                            {first_ms / 1000, first_ms % 1000 * 1000000}};
  timer_t timer;
  MUST(timer_create(clock, &event, &timer));
  MUST(timer_settime(timer, 0, &spec, NULL));
  return timer;
}
static int64_t left(timer_t timer) {
  struct itimerspec spec;
  MUST(timer_gettime(timer, &spec));
  return spec.it_value.tv_sec * 1000 + spec.it_value.tv_nsec / 1000000;
}

int main(void) {
  watch();
  struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
  MUST(sigaction(SIGRTMIN, &action, NULL));
  sigset_t late;
  sigemptyset(&late);
  sigaddset(&late, SIGRTMIN + 1);
  pthread_sigmask(SIG_BLOCK, &late, NULL);
  timer_t deleted = make(CLOCK_MONOTONIC, 0, 0, 1000, 0);  // so that the ids have a hole
  timer_t ticking = make(CLOCK_MONOTONIC, SIGRTMIN, 4711, 10, 10);
  started = milliseconds();
  MUST(timer_delete(deleted));
  timer_t far = make(CLOCK_BOOTTIME, 0, 0, 3600000, 0);
  timer_t real = make(CLOCK_REALTIME, 0, 0, 1800000, 5000);
  timer_t cpu = make(CLOCK_PROCESS_CPUTIME_ID, 0, 0, 900000, 0);
  timer_t disarmed = make(CLOCK_MONOTONIC, SIGUSR1, 0, 0, 0);
  make(CLOCK_MONOTONIC, SIGRTMIN + 1, 99, 20, 20);  // blocked: it overruns
  ready();
  while (running_slowly()) {
    int64_t age = milliseconds() - started;
    CHECK(ticks >= (age - 400) / 10 - 2 && ticks <= age / 10 + 3, "%d ticks of 10 ms in %ld ms", ticks, (long)age);
    CHECK(labs(left(far) - (3600000 - age)) < 300, "%ld ms left, should be %ld", (long)left(far),
          (long)(3600000 - age));
    CHECK(labs(left(real) - (1800000 - age)) < 300, "%ld ms left of the real one", (long)left(real));
    CHECK(left(cpu) <= 900000 && left(cpu) > 800000, "%ld ms left of the processor's", (long)left(cpu));
    CHECK(left(disarmed) == 0, "the disarmed timer is armed");
  }
  siginfo_t info;
  struct timespec limit = {1, 0};
  int got;
  while ((got = sigtimedwait(&late, &info, &limit)) < 0 && errno == EINTR) {
  }
  CHECK(got == SIGRTMIN + 1, "the blocked timer is silent");
  int64_t expected = (milliseconds() - started) / 20;
  CHECK(info.si_value.sival_int == 99 && labs(info.si_overrun + 1 - expected) < 40, "value %d overrun %d, %ld periods",
        info.si_value.sival_int, info.si_overrun, (long)expected);
  MUST(timer_delete(real));
  MUST(timer_delete(ticking));
  return ok();
}
