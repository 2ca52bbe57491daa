// Regular files: positions, access modes, status flags, close-on-exec, and descriptor numbers with holes.
#include "tracee.h"

enum { COUNT = 7 };
static const int flags[COUNT] = {
    O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_APPEND, O_RDWR | O_NONBLOCK | O_NOATIME, O_RDWR | O_CLOEXEC | O_SYNC,
    O_PATH};
static const int numbers[COUNT] = {5, 17, 3, 400, 64, 63, 200};

int main(void) {
  watch();
  int before[COUNT];
  bool inherited[500];
  for (int fd = 0; fd < 500; fd++) inherited[fd] = fcntl(fd, F_GETFD) >= 0;
  char page[8192];
  for (int i = 0; i < COUNT; i++) {
    char path[64];
    snprintf(path, sizeof path, "file_position.%d", i);
    int made = MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640));
    fill(page, sizeof page, i);
    CHECK(write(made, page, sizeof page) == sizeof page, "write");
    close(made);
    int fd = MUST(open(path, flags[i]));
    if (fd != numbers[i]) {
      MUST(dup3(fd, numbers[i], flags[i] & O_CLOEXEC));
      close(fd);
    }
    if (!(flags[i] & O_PATH)) MUST(lseek(numbers[i], 1000 * i, SEEK_SET));
    before[i] = MUST(fcntl(numbers[i], F_GETFL));
  }
  ready();
  off_t appended = sizeof page;
  while (running_slowly())
    for (int i = 0; i < COUNT; i++) {
      int fd = numbers[i], is = MUST(fcntl(fd, F_GETFL));
      CHECK(is == before[i], "descriptor %d: flags %o were %o", fd, is, before[i]);
      CHECK(fcntl(fd, F_GETFD) == (flags[i] & O_CLOEXEC ? FD_CLOEXEC : 0), "descriptor %d: close-on-exec", fd);
      if (flags[i] & O_APPEND) {
        uint64_t byte = appended;
        MUST(lseek(fd, 10, SEEK_SET));
        CHECK(write(fd, &byte, 8) == 8 && lseek(fd, 0, SEEK_CUR) == (appended += 8), "append");
        CHECK(pread(fd, &byte, 8, appended - 8) == 8 && (off_t)byte == appended - 8, "appended was %ld", (long)byte);
      } else if (!(flags[i] & O_PATH)) {
        CHECK(lseek(fd, 0, SEEK_CUR) == 1000 * i, "descriptor %d: position %ld", fd, (long)lseek(fd, 0, SEEK_CUR));
      }
      if (flags[i] == O_RDONLY || flags[i] & O_NONBLOCK) {
        CHECK(pread(fd, page, sizeof page, 0) == sizeof page, "pread");
        verify("file", page, sizeof page, i);
        CHECK(flags[i] & O_RDWR || (write(fd, "x", 1) == -1 && errno == EBADF), "a file opened to read is written");
      }
    }
  for (int fd = 3; fd < 500; fd++) {
    bool ours = inherited[fd];
    for (int i = 0; i < COUNT; i++) ours |= numbers[i] == fd;
    CHECK((fcntl(fd, F_GETFD) >= 0) == ours, "descriptor %d is %s", fd, ours ? "closed" : "open");
  }
  return ok();
}
