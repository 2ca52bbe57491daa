// Sleeps with a time: relative, absolute, through the old call and the new; they end when they should, however often
// they are moved.
#include "tracee.h"

enum { MS = 1500, EARLY = 2, THREADS = 6 };
static volatile bool over;
static int late = 700;

static int64_t now_in(clockid_t clock) {
  return nanoseconds(clock) / 1000000;
}
static long nap(int kind) {
  struct timespec length = {MS / 1000, MS % 1000 * 1000000}, rest = {77, 77}, until;
  clockid_t clock = kind % 2 ? CLOCK_MONOTONIC : CLOCK_BOOTTIME;
  switch (kind) {
    case 0:
    case 1:
      return syscall(SYS_nanosleep, &length, &rest);
    case 2:
    case 3:
      return syscall(SYS_clock_nanosleep, clock, 0, &length, &rest);
    default:
      MUST(clock_gettime(clock, &until));
      until.tv_sec += (until.tv_nsec + length.tv_nsec) / 1000000000 + length.tv_sec;
      until.tv_nsec = (until.tv_nsec + length.tv_nsec) % 1000000000;
      return syscall(SYS_clock_nanosleep, clock, TIMER_ABSTIME, &until, NULL);
  }
}
static void* work(void* argument) {
  int kind = (int)(intptr_t)argument;
  pause_ms(kind * MS / THREADS);
  while (!over) {
    int64_t start = now_in(CLOCK_MONOTONIC);
    long result = nap(kind);
    int64_t took = now_in(CLOCK_MONOTONIC) - start;
    CHECK(result == 0, "sleep %d: %s", kind, strerror(errno));
    CHECK(took >= MS - EARLY && took < MS + late, "sleep %d of %d ms took %ld", kind, MS, (long)took);
  }
  return NULL;
}

int main(int count, char** arguments) {
  if (count > 1) late = atoi(arguments[1]);
  watch();
  pthread_t threads[THREADS];
  for (intptr_t i = 0; i < THREADS; i++) threads[i] = thread(work, (void*)i);
  ready();
  while (running_slowly()) {
  }
  over = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  return ok();
}
