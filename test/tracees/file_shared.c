// A shared mapping of a file, seen by a second mapping in another process, by read() and by write().
#include "tracee.h"

enum { PAGES = 64 };
static uint64_t* memory;
static int file;

static int reader(void) {
  uint64_t last = 0;
  while (running()) {
    uint64_t now = __atomic_load_n(memory, __ATOMIC_ACQUIRE), read = 0;
    CHECK(pread(file, &read, 8, 0) == 8, "pread: %s", strerror(errno));
    CHECK(now >= last, "the mapping went back from %lu to %lu", last, now);
    CHECK(read >= now, "read() gives %lu, the mapping %lu", read, now);
    last = now;
    sched_yield();
  }
  return last == 0;
}

int main(void) {
  watch();
  file = MUST(open("file_shared.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(ftruncate(file, PAGES * 4096));
  memory = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  int read_only = MUST(open("file_shared.data", O_RDONLY));
  volatile uint64_t* seen = MUST(mmap(NULL, 4096, PROT_READ, MAP_SHARED, read_only, 0));
  close(read_only);
  pid_t pid = child(reader);
  ready();
  uint64_t turn = 0;
  while (running() || turn < 100) {
    turn++;
    memory[512 + turn % (PAGES - 2) * 512] = turn;
    __atomic_store_n(memory, turn, __ATOMIC_RELEASE);
    CHECK(seen[0] == turn, "the read-only mapping shows %lu, should be %lu", seen[0], turn);
    uint64_t back = 0;
    CHECK(pread(file, &back, 8, 4096 + (off_t)(turn % (PAGES - 2)) * 4096) == 8 && back == turn,
          "read() gives %lu, was %lu", back, turn);
    uint64_t written = turn * 3;
    CHECK(pwrite(file, &written, 8, (PAGES - 1) * 4096) == 8, "pwrite: %s", strerror(errno));
    CHECK(memory[(PAGES - 1) * 512] == written, "the mapping doesn't show what was written");
    if (turn % 64 == 0) pause_ms(1);
  }
  finish_child(pid);
  struct stat status;
  MUST(fstat(file, &status));
  CHECK(status.st_size == PAGES * 4096, "size is %ld", (long)status.st_size);
  return ok();
}
