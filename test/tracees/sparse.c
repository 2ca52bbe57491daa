// A huge sparse mapping: few pages are there, and no more than that may be there afterwards.
#include "tracee.h"

#define BYTES (64ul << 30)
enum { COUNT = 500 };

int main(void) {
  watch();
  char* memory = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
  char* shared = map(4ul << 30, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE);
#define PAGE(i) (memory + (pattern(i, 0) % (BYTES / 4096)) * 4096)
#define SHARED(i) (shared + (pattern(i, 0) % ((4ul << 30) / 4096)) * 4096)
  for (int i = 0; i < COUNT; i++) fill(PAGE(i), 4096, i);
  for (int i = 0; i < COUNT / 10; i++) fill(SHARED(i), 4096, i);
  long before = proc_number("/proc/self/status", "VmRSS", 10);
  ready();
  for (uint64_t turn = 0; running_slowly(); turn++) {
    int i = turn % COUNT;
    verify("page", PAGE(i), 4096, i);
    fill(PAGE(i), 4096, i);
  }
  for (int i = 0; i < COUNT; i++) verify("page", PAGE(i), 4096, i);
  for (int i = 0; i < COUNT / 10; i++) verify("shared page", SHARED(i), 4096, i);
  long after = proc_number("/proc/self/status", "VmRSS", 10);
  CHECK(after < before + 4096, "resident were %ld KiB, now %ld", before, after);
  return ok();
}
