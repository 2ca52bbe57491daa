// A sealed memfd and one that is written: mapped by two processes, read through the descriptor, name, size and seals.
#include <linux/memfd.h>

#include "tracee.h"

enum { BYTES = 1 << 20 };
static char* memory;
static int written;

static int second(void) {
  char* mine = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, written, 0));
  while (running_slowly()) {
    __atomic_fetch_add((uint64_t*)mine + 1, 1, __ATOMIC_SEQ_CST);
    uint64_t first = __atomic_load_n((uint64_t*)memory, __ATOMIC_SEQ_CST);
    CHECK(*(volatile uint64_t*)mine >= first, "two mappings of one memfd differ");
  }
  return 0;
}

int main(void) {
  watch();
  int sealed = MUST(memfd_create("sealed thing", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  written = MUST(memfd_create("written", 0));
  MUST(ftruncate(written, BYTES));
  memory = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, written, 0));
  char page[4096];
  fill(page, 4096, 5);
  CHECK(write(sealed, page, 4096) == 4096 && write(sealed, page, 100) == 100, "write");
  MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
  MUST(lseek(sealed, 42, SEEK_SET));
  fill(memory + 8192, BYTES - 8192, 1);
  pid_t pid = child(second);
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++) {
    __atomic_store_n((uint64_t*)memory, turn, __ATOMIC_SEQ_CST);
    uint64_t back;
    CHECK(pread(written, &back, 8, 0) == 8 && back == turn, "read gives %lu, written was %lu", back, turn);
    verify("memfd", memory + 8192, BYTES - 8192, 1);
  }
  CHECK(lseek(sealed, 0, SEEK_CUR) == 42 && lseek(sealed, 0, SEEK_END) == 4196, "position or size of the sealed one");
  CHECK(fcntl(sealed, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seals are %d",
        fcntl(sealed, F_GET_SEALS));
  CHECK(fcntl(sealed, F_GETFD) == FD_CLOEXEC && fcntl(written, F_GETFD) == 0, "close-on-exec");
  CHECK(write(sealed, page, 1) == -1 && errno == EPERM, "the sealed one can be written");
  memset(page, 0, sizeof page);
  CHECK(pread(sealed, page, 4096, 0) == 4096, "pread");
  verify("sealed", page, 4096, 5);
  char name[64] = {0}, path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", sealed);
  MUST(readlink(path, name, sizeof name - 1));
  CHECK(strcmp(name, "/memfd:sealed thing (deleted)") == 0, "name is %s", name);
  uint64_t before = __atomic_load_n((uint64_t*)memory + 1, __ATOMIC_SEQ_CST);
  for (int64_t end = milliseconds() + 5000; __atomic_load_n((uint64_t*)memory + 1, __ATOMIC_SEQ_CST) == before;
       pause_ms(1))
    CHECK(milliseconds() < end, "the child's writes are not seen");
  finish_child(pid);
  return ok();
}
