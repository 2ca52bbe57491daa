// Children that have ended and wait to be collected: their pids, exit statuses, signals and the order they had.
#include <sys/resource.h>

#include "tracee.h"

static int gone_with(int how) {
  pid_t pid = MUST(fork());
  if (pid == 0) {
    prctl(PR_SET_NAME, "ended");
    if (how < 128) _exit(how);
    signal(how - 128, SIG_DFL);
    prctl(PR_SET_DUMPABLE, 0);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    kill(getpid(), how - 128);
    pause();
  }
  return pid;
}

int main(void) {
  watch();
  const int how[] = {0, 3, 127, 128 + SIGKILL, 128 + SIGSEGV, 128 + SIGUSR1};
  enum { COUNT = sizeof how / sizeof *how };
  pid_t pids[COUNT];
  for (int i = 0; i < COUNT; i++) {
    siginfo_t info;
    pids[i] = gone_with(how[i]);
    MUST(waitid(P_PID, pids[i], &info, WEXITED | WNOWAIT));
  }
  ready();
  do
    for (int i = 0; i < COUNT; i++) {
      siginfo_t info = {0};
      MUST(waitid(P_PID, pids[i], &info, WEXITED | WNOWAIT | WNOHANG));
      CHECK(info.si_pid == pids[i], "zombie %d (pid %d) is gone", i, pids[i]);
      CHECK(kill(pids[i], 0) == 0, "zombie %d: %s", pids[i], strerror(errno));
    }
  while (running_slowly());
  for (int i = 0; i < COUNT; i++) {
    int status = -1;
    CHECK(waitpid(pids[i], &status, 0) == pids[i], "waitpid: %s", strerror(errno));
    if (how[i] < 128)
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == how[i], "status 0x%x, should have exited with %d", status,
            how[i]);
    else
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == how[i] - 128, "status 0x%x, should be of signal %d", status,
            how[i] - 128);
  }
  CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "there are more children than were made");
  return ok();
}
