// A deep tree of processes with sessions, groups, a subreaper, and orphans that went to it and to the pod's init.
#include "tracee.h"

enum { DEPTH = 12 };
static atomic_int* alive;
static int depth;
static pid_t leaver;

static int level(void) {
  if (depth % 3 == 0) MUST(setsid());
  if (depth % 3 == 1) MUST(setpgid(0, 0));
  was = identity();
  pid_t below = 0;
  if (++depth < DEPTH) below = child(level);
  atomic_fetch_add(alive, 1);
  while (running_slowly()) {
  }
  if (below) finish_child(below);
  return 0;
}
static int orphan(void) {
  while (getppid() == leaver) pause_ms(1);
  was = identity();
  atomic_fetch_add(alive, 1);
  while (running_slowly()) {
  }
  return 0;
}
static int leaves_orphan(void) {
  leaver = getpid();
  alive[1 + (getpgrp() == getpid())] = child(orphan);
  return 0;
}
static int subreaper(void) {
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  MUST(setpgid(0, 0));
  was = identity();
  pid_t pid = child(leaves_orphan);
  CHECK(waitpid(pid, NULL, 0) == pid, "waitpid");
  while (atomic_load(alive) < 1) pause_ms(1);
  while (running_slowly()) CHECK(waitpid(-1, NULL, WNOHANG) == 0, "the adopted orphan is gone");
  int is = 0;
  prctl(PR_GET_CHILD_SUBREAPER, &is);
  CHECK(is == 1, "no subreaper any more");
  finish_child(alive[1]);  // ours, because we are the subreaper
  return 0;
}

int main(void) {
  watch();
  alive = shared_page();
  pid_t reaper = child(subreaper);
  while (atomic_load(alive) < 1) pause_ms(1);
  pid_t deep = child(level);
  pid_t pid = MUST(fork());
  if (pid == 0) {  // its orphan goes to the pod's init
    MUST(setpgid(0, 0));
    watch();
    _exit(leaves_orphan());
  }
  CHECK(waitpid(pid, NULL, 0) == pid, "waitpid");
  while (atomic_load(alive) < DEPTH + 2) pause_ms(1);
  ready();
  while (running_slowly()) {
  }
  finish_child(deep);
  finish_child(reaper);
  MUST(kill(alive[2], SIGTERM));
  return ok();
}
