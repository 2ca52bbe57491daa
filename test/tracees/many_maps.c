// Three thousand mappings with different protections, names and advice.
#include "tracee.h"

enum { COUNT = 3000 };

int main(void) {
  watch();
  char* memory = map((size_t)COUNT * 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  for (int i = 0; i < COUNT; i++) {
    char* page = memory + (size_t)i * 2 * 4096;
    fill(page, 4096, i);
    fill(page + 4096, 4096, i + 1);
    MUST(mprotect(page, 4096, i % 3 == 0 ? PROT_READ : i % 3 == 1 ? PROT_READ | PROT_EXEC : PROT_NONE));
    if (i % 5 == 0) MUST(madvise(page + 4096, 4096, MADV_DONTFORK));
    if (i % 7 == 0) MUST(madvise(page + 4096, 4096, MADV_DONTDUMP));
    if (i % 11 == 0) MUST(madvise(page + 4096, 4096, MADV_WIPEONFORK));
    if (i % 13 == 0) mlock(page + 4096, 4096);
    if (i % 17 == 0) prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, page + 4096, 4096, "a name");
  }
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++)
    for (int i = turn % 10; i < COUNT; i += 10) {
      if (i % 3 != 2) verify("first", memory + (size_t)i * 2 * 4096, 4096, i);
      verify("second", memory + (size_t)i * 2 * 4096 + 4096, 4096, i + 1);
      fill(memory + (size_t)i * 2 * 4096 + 4096, 4096, i + 1);
    }
  for (int i = 2; i < COUNT; i += 3) {
    MUST(mprotect(memory + (size_t)i * 2 * 4096, 4096, PROT_READ));
    verify("hidden", memory + (size_t)i * 2 * 4096, 4096, i);
  }
  return ok();
}
