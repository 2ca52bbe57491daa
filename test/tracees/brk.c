// varies: maps
// The heap: brk grows and shrinks while it moves, its start and end stay.
#include "tracee.h"

int main(void) {
  watch();
  char* start = sbrk(0);
  start = (char*)(((uintptr_t)start + 4095) & ~4095ul);
  size_t pages = 0;
  uint64_t turns[1024];
  ready();
  for (uint64_t turn = 1; running(); turn++) {
    size_t want = pattern(turn, 0) % 1024;
    CHECK(brk(start + want * 4096) == 0, "brk: %s", strerror(errno));
    for (size_t i = pages; i < want; i++) {
      for (int k = 0; k < 4096; k += 512) CHECK(start[i * 4096 + k] == 0, "new heap page %zu is not zero", i);
      fill(start + i * 4096, 4096, turns[i] = turn);
    }
    pages = want;
    for (size_t i = 0; i < pages; i += 7) verify("heap", start + i * 4096, 4096, turns[i]);
    CHECK(sbrk(0) == start + pages * 4096, "the break is %p, should be %p", sbrk(0), (void*)(start + pages * 4096));
    if (turn % 8 == 0) pause_ms(1);
  }
  for (size_t i = 0; i < pages; i++) verify("heap", start + i * 4096, 4096, turns[i]);
  return ok();
}
