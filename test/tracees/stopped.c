// A child stopped by SIGSTOP stays stopped, can be seen as such by its parent, and goes on at SIGCONT.
#include "tracee.h"

static _Atomic uint64_t* counter;
static int work(void) {
  while (running()) {
    atomic_fetch_add(counter, 1);
    pause_ms(1);
  }
  return 0;
}

int main(void) {
  watch();
  counter = shared_page();
  pid_t pid = child(work);
  while (atomic_load(counter) < 5) pause_ms(1);
  MUST(kill(pid, SIGSTOP));
  siginfo_t info;
  MUST(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT));
  uint64_t before = atomic_load(counter);
  ready();
  while (running_slowly()) CHECK(atomic_load(counter) == before, "the stopped child runs");
  int status;
  CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP,
        "not reported as stopped");
  MUST(kill(pid, SIGCONT));
  CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status), "not reported as continued");
  for (int64_t end = milliseconds() + 5000; atomic_load(counter) == before; pause_ms(1))
    CHECK(milliseconds() < end, "it doesn't go on");
  finish_child(pid);
  return ok();
}
