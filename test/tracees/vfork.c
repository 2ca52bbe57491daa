// varies: processes
// A vfork parent waits while its child lives on for a good while, and runs with its registers and memory when the child
// is gone.
#include "tracee.h"

static volatile uint64_t in_child;

int main(int count, char** arguments) {
  if (count > 1) {
    pause_ms(atoi(arguments[1]));
    return 3;
  }
  watch();
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    volatile uint64_t local = pattern(turn, 1);
    pid_t pid = vfork();
    if (pid == 0) {
      in_child = turn;  // it shares our memory
      for (int64_t end = milliseconds() + 30; milliseconds() < end;) {
      }
      if (turn % 2) _exit(3);
      execl("/proc/self/exe", arguments[0], "20", NULL);
      _exit(4);
    }
    int status;
    CHECK(pid > 0 && in_child == turn && local == pattern(turn, 1), "after vfork: pid %d, turn %lu of %lu", pid,
          in_child, turn);
    while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3, "vfork's child: status 0x%x", status);
  }
  return ok();
}
