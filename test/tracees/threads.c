// 64 threads: ids, names, thread-local storage, stacks; contended mutex and condition variable; joined at the end.
#include "tracee.h"

enum { THREADS = 64 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long counter, added[THREADS];
static int started, turn;
static __thread uint64_t mine[32];

static void* work(void* argument) {
  intptr_t number = (intptr_t)argument;
  pid_t tid = (pid_t)syscall(SYS_gettid);
  char name[16], now[16] = {0};
  snprintf(name, sizeof name, "worker-%ld", number);
  prctl(PR_SET_NAME, name);
  fill(mine, sizeof mine, number);
  pthread_mutex_lock(&mutex);
  started++;
  while (!told_to_finish) {
    counter++;
    added[number]++;
    if (turn % THREADS == number) {  // a token goes round all threads
      turn++;
      pthread_cond_broadcast(&changed);
    } else {
      pthread_cond_wait(&changed, &mutex);
    }
    pthread_mutex_unlock(&mutex);
    verify("thread-local storage", mine, sizeof mine, number);
    CHECK(syscall(SYS_gettid) == tid, "tid %ld was %d", (long)syscall(SYS_gettid), tid);
    prctl(PR_GET_NAME, now);
    CHECK(strcmp(now, name) == 0, "name %s was %s", now, name);
    pthread_mutex_lock(&mutex);
  }
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  return (void*)(number * 3 + 1);
}

int main(void) {
  pthread_t threads[THREADS];
  watch();
  for (intptr_t i = 0; i < THREADS; i++) threads[i] = thread(work, (void*)i);
  for (bool all = false; !all; sched_yield()) {
    pthread_mutex_lock(&mutex);
    all = started == THREADS;
    pthread_mutex_unlock(&mutex);
  }
  ready();
  while (running_slowly()) {
  }
  pthread_mutex_lock(&mutex);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  long sum = 0;
  for (intptr_t i = 0; i < THREADS; i++) {
    void* result;
    pthread_join(threads[i], &result);
    CHECK(result == (void*)(i * 3 + 1), "thread %ld returned %p", i, result);
    sum += added[i];
  }
  CHECK(sum == counter, "%ld were added, the counter has %ld", sum, counter);
  return ok();
}
