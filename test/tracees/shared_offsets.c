// varies: descriptors
// Descriptors that are one open file: dup, fork and a number in another process share position and flags; a second open
// doesn't.
#include "tracee.h"

static struct { atomic_int turn; } * shared;
static int file;

static int second(void) {
  while (running_slowly()) {
    int turn = shared->turn;
    if (turn % 2 == 0) continue;
    CHECK(lseek(file, 0, SEEK_CUR) == turn * 10, "the child sees position %ld, should be %d",
          (long)lseek(file, 0, SEEK_CUR), turn * 10);
    MUST(lseek(file, (turn + 1) * 10, SEEK_SET));
    shared->turn = turn + 1;
  }
  return 0;
}

int main(void) {
  watch();
  shared = shared_page();
  file = MUST(open("shared_offsets.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  int copy = MUST(dup(file)), far = MUST(fcntl(file, F_DUPFD_CLOEXEC, 300)),
      other = MUST(open("shared_offsets.data", O_RDWR));
  MUST(lseek(other, 7, SEEK_SET));
  pid_t pid = child(second);
  ready();
  while (running_slowly() || shared->turn < 10) {
    int turn = shared->turn;
    if (turn % 2) continue;
    CHECK(lseek(copy, 0, SEEK_CUR) == turn * 10 && lseek(far, 0, SEEK_CUR) == turn * 10,
          "a duplicate has another position");
    CHECK(lseek(other, 0, SEEK_CUR) == 7, "the second open's position is %ld", (long)lseek(other, 0, SEEK_CUR));
    int flags = turn % 4 ? O_APPEND : 0;
    MUST(fcntl(copy, F_SETFL, flags));
    CHECK((fcntl(far, F_GETFL) & O_APPEND) == flags, "a duplicate has other flags");
    CHECK((fcntl(other, F_GETFL) & O_APPEND) == 0, "the second open has the first one's flags");
    MUST(lseek(copy, (turn + 1) * 10, SEEK_SET));
    shared->turn = turn + 1;
  }
  finish_child(pid);
  CHECK(fcntl(far, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0, "close-on-exec");
  CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, file, far) <= 0 || errno == ENOSYS, "not the same open file any more");
  return ok();
}
