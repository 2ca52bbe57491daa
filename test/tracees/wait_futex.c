// Futexes: timed waits of several kinds end in time and with ETIMEDOUT; one without limit is woken; a PI mutex is
// handed over.
#include <linux/futex.h>

#include "tracee.h"

enum { MS = 1500, EARLY = 2, LATE = 700, KINDS = 4 };
static volatile bool over;
static uint32_t word, gate;
static pthread_mutex_t inherit;

static long wait_for(int kind) {
  struct timespec limit = {MS / 1000, MS % 1000 * 1000000}, until;
  MUST(clock_gettime(kind == 3 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &until));
  until.tv_sec += (until.tv_nsec + limit.tv_nsec) / 1000000000 + limit.tv_sec;
  until.tv_nsec = (until.tv_nsec + limit.tv_nsec) % 1000000000;
  if (kind == 0) return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit);
  if (kind == 1) return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit);
  return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE | (kind == 3 ? FUTEX_CLOCK_REALTIME : 0), 0, &until, NULL,
                 ~0u);
}
static void* timed(void* argument) {
  int kind = (int)(intptr_t)argument;
  pause_ms(kind * MS / KINDS);
  while (!over) {
    int64_t start = milliseconds();
    long result = wait_for(kind);
    int error = errno;
    int64_t took = milliseconds() - start;
    CHECK(result == -1 && error == ETIMEDOUT, "futex %d: %ld %s", kind, result, strerror(error));
    CHECK(took >= MS - EARLY && took < MS + LATE, "futex %d of %d ms took %ld", kind, MS, (long)took);
  }
  return NULL;
}
static void* for_ever(void* unused) {
  while (__atomic_load_n(&gate, __ATOMIC_SEQ_CST) == 0)
    CHECK(syscall(SYS_futex, &gate, FUTEX_WAIT_PRIVATE, 0, NULL) == 0 || errno == EAGAIN, "futex without limit: %s",
          strerror(errno));
  pthread_mutex_lock(&inherit);
  pthread_mutex_unlock(&inherit);
  return unused;
}
static void* owned(void* unused) {
  CHECK(pthread_mutex_lock(&inherit) == 0, "PI mutex");
  pthread_mutex_unlock(&inherit);
  return unused;
}

int main(void) {
  watch();
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  pthread_mutex_init(&inherit, &attributes);
  pthread_mutex_lock(&inherit);
  pthread_t threads[KINDS + 2];
  for (intptr_t i = 0; i < KINDS; i++) threads[i] = thread(timed, (void*)i);
  threads[KINDS] = thread(for_ever, NULL);
  threads[KINDS + 1] = thread(owned, NULL);
  ready();
  while (running_slowly()) {
  }
  over = true;
  pthread_mutex_unlock(&inherit);
  __atomic_store_n(&gate, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_futex, &gate, FUTEX_WAKE_PRIVATE, 1);
  for (int i = 0; i < KINDS + 2; i++) pthread_join(threads[i], NULL);
  return ok();
}
