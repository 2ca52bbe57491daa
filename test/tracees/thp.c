// Transparent huge pages: content, and the advice given for the mapping.
#include "tracee.h"

enum { HUGE = 2 << 20, COUNT = 8 };

int main(void) {
  watch();
  char* raw = map(HUGE * (COUNT + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE);
  char* memory = (char*)(((uintptr_t)raw + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
  MUST(madvise(memory, HUGE * COUNT, MADV_HUGEPAGE));
  uint64_t turns[COUNT] = {0};
  for (int i = 0; i < COUNT; i++) fill(memory + i * HUGE, HUGE, i);
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++) {
    int i = turn % (COUNT / 2);  // the other half is never written again
    verify("huge page", memory + i * HUGE, HUGE, i + turns[i]);
    fill(memory + i * HUGE, HUGE, i + (turns[i] = turn));
  }
  for (int i = 0; i < COUNT; i++) verify("huge page", memory + i * HUGE, HUGE, i + turns[i]);
  FILE* file = fopen("/proc/self/smaps", "r");
  char line[512], inside = 0, advised = 0;
  while (fgets(line, sizeof line, file)) {
    unsigned long from, to;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2) inside = from <= (uintptr_t)memory && (uintptr_t)memory < to;
    if (inside && strncmp(line, "VmFlags:", 8) == 0) advised = strstr(line, " hg") != NULL;
  }
  CHECK(advised, "the advice MADV_HUGEPAGE is gone");
  return ok();
}
