// Affinity, nice value, scheduling class, priority, I/O priority and timer slack, of each thread its own.
#include <sys/resource.h>
#include <sys/syscall.h>

#include "tracee.h"

enum { THREADS = 5 };
static const int classes[THREADS] = {SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR};
static volatile bool over;
static atomic_int prepared;

typedef struct {
  int class, priority, nice, io, slack;
  cpu_set_t affinity;
} State;

static State now(void) {
  State state = {.class = sched_getscheduler(0)};
  struct sched_param parameter;
  MUST(sched_getparam(0, &parameter));
  MUST(sched_getaffinity(0, sizeof state.affinity, &state.affinity));
  state.priority = parameter.sched_priority;
  state.nice = getpriority(PRIO_PROCESS, 0);
  state.io = (int)syscall(SYS_ioprio_get, 1, 0);
  state.slack = prctl(PR_GET_TIMERSLACK);
  return state;
}
static void* work(void* argument) {
  intptr_t number = (intptr_t)argument;
  struct sched_param parameter = {.sched_priority =
                                      classes[number] == SCHED_FIFO || classes[number] == SCHED_RR ? 3 : 0};
  sched_setscheduler(0, classes[number], &parameter);  // a cgroup may forbid real time: what we got is what must stay
  setpriority(PRIO_PROCESS, 0, (int)number);
  syscall(SYS_ioprio_set, 1, 0, 2 << 13 | number);
  prctl(PR_SET_TIMERSLACK, 100000 + number);
  cpu_set_t set;
  MUST(sched_getaffinity(0, sizeof set, &set));
  if (number % 2 && CPU_COUNT(&set) > 1)
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set)) {
        CPU_CLR(cpu, &set);
        break;
      }
  MUST(sched_setaffinity(0, sizeof set, &set));
  State before = now();
  prepared++;
  while (!over) {
    State after = now();
    CHECK(after.class == before.class && after.priority == before.priority, "thread %ld: class %d/%d was %d/%d", number,
          after.class, after.priority, before.class, before.priority);
    CHECK(after.nice == before.nice && after.io == before.io && after.slack == before.slack,
          "thread %ld: nice %d io %x slack %d were %d %x %d", number, after.nice, after.io, after.slack, before.nice,
          before.io, before.slack);
    CHECK(CPU_EQUAL(&after.affinity, &before.affinity), "thread %ld: other affinity", number);
    pause_ms(5);
  }
  return NULL;
}

int main(void) {
  watch();
  pthread_t threads[THREADS];
  for (intptr_t i = 0; i < THREADS; i++) threads[i] = thread(work, (void*)i);
  while (prepared < THREADS) pause_ms(1);
  ready();
  while (running_slowly()) {
  }
  over = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  return ok();
}
