// Locks on files: POSIX record locks, open-file-description locks and flock; another process finds them held by the
// right owner.
#include <sys/file.h>

#include "tracee.h"

static int expect(int fd, int command, short type, off_t start, off_t length, pid_t owner) {
  struct flock lock = {.l_type = F_WRLCK, .l_start = start, .l_len = length};
  MUST(fcntl(fd, command, &lock));
  CHECK(lock.l_type == type, "lock at %ld is of type %d, should be %d", (long)start, lock.l_type, type);
  if (type != F_UNLCK)
    CHECK(lock.l_pid == owner, "lock at %ld belongs to %d, should be %d", (long)start, lock.l_pid, owner);
  return 0;
}
static pid_t parent;
static void look(void) {
  int fd = MUST(open("locks.data", O_RDWR)), free_one = MUST(open("locks.free", O_RDWR)),
      whole = MUST(open("locks.whole", O_RDWR));
  expect(fd, F_GETLK, F_WRLCK, 10, 5, parent);
  expect(fd, F_GETLK, F_RDLCK, 100, 5, parent);
  expect(fd, F_GETLK, F_UNLCK, 40, 20, 0);
  expect(fd, F_GETLK, F_WRLCK, 1000000, 1, parent);
  expect(free_one, F_GETLK, F_WRLCK, 0, 1, -1);  // of an open file: no process owns it
  expect(free_one, F_GETLK, F_UNLCK, 60, 1, 0);
  CHECK(flock(whole, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the flock is not held");
  MUST(close(fd));
  MUST(close(free_one));
  MUST(close(whole));
}
static int other(void) {
  close(5), close(6), close(7);
  while (running_slowly()) look();
  look();
  return 0;
}
static void lock(int fd, int command, short type, off_t start, off_t length) {
  struct flock lock = {.l_type = type, .l_start = start, .l_len = length};
  MUST(fcntl(fd, command, &lock));
}

int main(void) {
  watch();
  parent = getpid();
  const char* names[] = {"locks.data", "locks.free", "locks.whole"};
  for (int i = 0; i < 3; i++) {
    int fd = MUST(open(names[i], O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(dup2(fd, 20 + i));
    close(fd);
    MUST(dup2(20 + i, 5 + i));
    close(20 + i);
  }
  lock(5, F_SETLK, F_WRLCK, 10, 20);
  lock(5, F_SETLK, F_RDLCK, 90, 100);
  lock(5, F_SETLK, F_WRLCK, 100000, 0);  // to the end of time
  lock(6, F_OFD_SETLK, F_WRLCK, 0, 50);
  MUST(flock(7, LOCK_SH));
  pid_t pid = child(other);
  ready();
  while (running_slowly()) CHECK(waitpid(pid, NULL, WNOHANG) == 0, "the other process has ended");
  finish_child(pid);
  return ok();
}
