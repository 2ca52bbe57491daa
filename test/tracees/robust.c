// Robust futexes: a process and a thread that die with a mutex in hand after a move leave EOWNERDEAD behind.
#include "tracee.h"

static struct {
  pthread_mutex_t mutex[2];
  atomic_int held;
} * shared;

static void hold(int which) {
  pthread_mutex_lock(&shared->mutex[which]);
  shared->held++;
}
static int dying_process(void) {
  hold(0);
  while (!told_to_finish) pause();
  _exit(0);  // with the mutex in hand
}
static void* dying_thread(void* go) {
  hold(1);
  while (!*(atomic_bool*)go) pause_ms(1);
  return NULL;
}

int main(void) {
  watch();
  shared = map(4096, PROT_READ | PROT_WRITE, MAP_SHARED);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  for (int i = 0; i < 2; i++) pthread_mutex_init(&shared->mutex[i], &attributes);
  atomic_bool go = false;
  pid_t pid = child(dying_process);
  pthread_t dying = thread(dying_thread, &go);
  while (shared->held < 2) pause_ms(1);
  void *head, *head_now;
  size_t size, size_now;
  MUST(syscall(SYS_get_robust_list, 0, &head, &size));
  ready();
  while (running_slowly())
    for (int i = 0; i < 2; i++) CHECK(pthread_mutex_trylock(&shared->mutex[i]) == EBUSY, "mutex %d is free", i);
  MUST(syscall(SYS_get_robust_list, 0, &head_now, &size_now));
  CHECK(head == head_now && size == size_now, "robust list %p (%zu) was %p (%zu)", head_now, size_now, head, size);
  go = true;
  pthread_join(dying, NULL);
  finish_child(pid);
  for (int i = 0; i < 2; i++) {
    int result = pthread_mutex_trylock(&shared->mutex[i]);
    CHECK(result == EOWNERDEAD, "mutex %d of the dead gives: %s", i, strerror(result));
  }
  return ok();
}
