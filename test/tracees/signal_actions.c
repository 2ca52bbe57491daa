// What each signal does: handler, flags, mask, restorer, ignored or default.
#include "tracee.h"

struct kernel_action {
  void* handler;
  unsigned long flags;
  void* restorer;
  uint64_t mask;
};
static void one(int signal) {
  (void)signal;
}
static void two(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)info, (void)context;
}

static struct kernel_action now(int signal) {
  struct kernel_action action = {0};
  MUST(syscall(SYS_rt_sigaction, signal, NULL, &action, 8));
  return action;
}

int main(void) {
  struct kernel_action before[65];
  watch();
  for (int signal = 1; signal < 65; signal++) {
    if (signal == SIGKILL || signal == SIGSTOP || signal == SIGTERM || signal == SIGSEGV || signal == 32 ||
        signal == 33)
      continue;
    struct sigaction action = {0};
    sigemptyset(&action.sa_mask);
    for (int other = 1; other < 65; other++)
      if (pattern(signal, other) % 4 == 0) sigaddset(&action.sa_mask, other);
    switch (signal % 4) {
      case 0:
        action.sa_handler = SIG_IGN;
        break;
      case 1:
        action.sa_handler = one, action.sa_flags = SA_RESTART | SA_NODEFER;
        break;
      case 2:
        action.sa_sigaction = two, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
        break;
      default:
        action.sa_handler = SIG_DFL, action.sa_flags = signal == SIGCHLD ? SA_NOCLDSTOP : 0;
    }
    MUST(sigaction(signal, &action, NULL));
  }
  for (int signal = 1; signal < 65; signal++) before[signal] = now(signal);
  ready();
  do
    for (int signal = 1; signal < 65; signal++) {
      struct kernel_action is = now(signal);
      CHECK(memcmp(&is, &before[signal], sizeof is) == 0, "signal %d: handler %p flags %lx mask %lx were %p %lx %lx",
            signal, is.handler, is.flags, (long)is.mask, before[signal].handler, before[signal].flags,
            (long)before[signal].mask);
    }
  while (running_slowly());
  return ok();
}
