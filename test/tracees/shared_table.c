// varies: descriptors threads
// Two processes with one descriptor table and one working directory (CLONE_FILES, CLONE_FS): what one opens, the other
// has.
#include <linux/sched.h>

#include "tracee.h"

static struct {
  atomic_int turn, number;
  atomic_bool over;
} * shared;

static int second(void) {
  for (int expected = 1; !shared->over; expected += 2) {
    while (shared->turn < expected && !shared->over) pause_ms(1);
    if (shared->over) break;
    char byte = 0;
    CHECK(pread(shared->number, &byte, 1, 0) == 1 && byte == 'x', "descriptor %d of the other: %s", shared->number,
          strerror(errno));
    MUST(close(shared->number));  // closes it for both
    umask(expected & 0777);
    shared->turn = expected + 1;
  }
  return 0;
}

int main(void) {
  watch();
  shared = shared_page();
  int file = MUST(open("shared_table.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  CHECK(write(file, "x", 1) == 1, "write");
  struct clone_args arguments = {.flags = CLONE_FILES | CLONE_FS, .exit_signal = SIGCHLD};
  pid_t pid = MUST(syscall(SYS_clone3, &arguments, sizeof arguments));
  if (pid == 0) _exit(second());
  ready();
  for (int turn = 0; running();) {
    shared->number = MUST(dup(file));
    shared->turn = ++turn;
    for (int64_t end = milliseconds() + 20000; shared->turn == turn; pause_ms(1))
      CHECK(milliseconds() < end, "the other is silent");
    CHECK(fcntl(shared->number, F_GETFD) == -1 && errno == EBADF, "what the other closed is open here");
    int mask = umask(0);
    CHECK(mask == (turn & 0777), "the other's umask is %o, ours %o", turn & 0777, mask);
    turn++;
  }
  shared->over = true;
  int status;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the other ended with status 0x%x", status);
  return ok();
}
