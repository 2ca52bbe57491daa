// Each thread's signal mask and alternate stack; a handler runs on that stack after the move.
#include "tracee.h"

enum { THREADS = 8, STACK = 65536 };
static volatile bool over;
static atomic_int prepared, handled;

static void on_signal(int signal) {
  stack_t stack;
  char here;
  (void)signal;
  MUST(sigaltstack(NULL, &stack));
  CHECK(stack.ss_flags & SS_ONSTACK, "the handler doesn't run on the alternate stack");
  CHECK(&here >= (char*)stack.ss_sp && &here < (char*)stack.ss_sp + stack.ss_size, "it runs somewhere else");
  handled++;
}
static void* work(void* argument) {
  intptr_t number = (intptr_t)argument;
  stack_t stack = {.ss_sp = map(STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE), .ss_size = STACK}, now;
  sigset_t mask, is;
  MUST(sigaltstack(&stack, NULL));
  sigfillset(&mask);
  for (int signal = 35; signal < 64; signal++)
    if ((signal + number) % 3 == 0) sigdelset(&mask, signal);
  sigdelset(&mask, SIGUSR1);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  prepared++;
  while (!over) {
    pthread_sigmask(SIG_SETMASK, NULL, &is);
    CHECK(memcmp(&is, &mask, 8) == 0, "thread %ld: mask differs", number);
    MUST(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == stack.ss_sp && now.ss_size == STACK && now.ss_flags == 0, "thread %ld: alternate stack differs",
          number);
    pause_ms(3);
  }
  return NULL;
}

int main(void) {
  watch();
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART};
  MUST(sigaction(SIGUSR1, &action, NULL));
  pthread_t threads[THREADS];
  for (intptr_t i = 0; i < THREADS; i++) threads[i] = thread(work, (void*)i);
  while (prepared < THREADS) pause_ms(1);
  ready();
  while (running_slowly()) {
  }
  for (int i = 0; i < THREADS; i++) pthread_kill(threads[i], SIGUSR1);
  for (int64_t end = milliseconds() + 5000; handled < THREADS; pause_ms(1))
    CHECK(milliseconds() < end, "%d handlers ran", handled);
  over = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  return ok();
}
