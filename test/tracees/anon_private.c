// Private anonymous memory: content, zero pages, holes, protections, and writing all the time.
#include "tracee.h"

enum { PAGES = 2048, BYTES = PAGES * 4096 };

int main(void) {
  watch();
  char* written = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  char* zero = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  char* fixed = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  char* hidden = map(BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  uint64_t turns[PAGES] = {0};
  for (int i = 0; i < PAGES; i++) fill(written + i * 4096, 4096, i);
  for (int i = 0; i < PAGES; i += 2) ((volatile char*)zero)[i * 4096];      // the zero page, read
  for (int i = 1; i < PAGES; i += 2) ((volatile char*)zero)[i * 4096] = 0;  // a page of its own, all zeros
  fill(fixed, BYTES, 7);
  MUST(mprotect(fixed, BYTES, PROT_READ));
  fill(hidden, BYTES, 8);
  MUST(mprotect(hidden, BYTES, PROT_NONE));
  ready();
  for (uint64_t turn = 1; running(); turn++)
    for (int i = 0; i < 64; i++) {
      int page = pattern(turn, i) % PAGES;
      verify("written", written + page * 4096, 4096, page + turns[page]);
      if (turn % 17 == 0 && i == 0) {  // dropped pages must not come back with what they held
        MUST(madvise(written + page * 4096, 4096, MADV_DONTNEED));
        for (int k = 0; k < 4096; k++) CHECK(written[page * 4096 + k] == 0, "a dropped page came back");
      }
      fill(written + page * 4096, 4096, page + (turns[page] = turn));
    }
  for (int i = 0; i < PAGES; i++) verify("written", written + i * 4096, 4096, i + turns[i]);
  for (int i = 0; i < BYTES; i++) CHECK(zero[i] == 0, "zero page has %d at %d", zero[i], i);
  verify("read-only", fixed, BYTES, 7);
  MUST(mprotect(hidden, BYTES, PROT_READ));
  verify("protected", hidden, BYTES, 8);
  return ok();
}
