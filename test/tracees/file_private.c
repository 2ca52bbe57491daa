// A private mapping of a file: copied pages are ours, the others show what is in the file.
#include "tracee.h"

enum { PAGES = 256 };

int main(void) {
  watch();
  int file = MUST(open("file_private.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  char page[4096];
  for (int i = 0; i < PAGES; i++) {
    fill(page, 4096, i);
    CHECK(write(file, page, 4096) == 4096, "write");
  }
  char* memory = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
  char* fixed = MUST(mmap(NULL, 64 * 4096, PROT_READ, MAP_PRIVATE, file, 8 * 4096));
  for (int i = 0; i < PAGES; i += 3) fill(memory + i * 4096, 4096, 1000 + i);
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++) {
    for (int i = 0; i < PAGES; i += 3)
      verify("copied", memory + i * 4096, 4096, turn == 1 ? 1000u + i : 1000u + i + (turn - 1) % 1000);
    for (int i = 0; i < PAGES; i += 3) fill(memory + i * 4096, 4096, 1000 + i + turn % 1000);
    for (int i = 1; i < PAGES; i += 3) verify("from the file", memory + i * 4096, 4096, i);
    for (int i = 0; i < 64; i++) verify("read-only", fixed + i * 4096, 4096, 8 + i);
  }
  // What is not copied still belongs to the file.
  fill(page, 4096, 5000);
  CHECK(pwrite(file, page, 4096, 100 * 4096) == 4096, "pwrite");
  verify("changed through the file", memory + 100 * 4096, 4096, 5000);
  verify("changed through the file", fixed + (100 - 8 < 64 ? 100 - 8 : 0) * 4096, 4096, 8);
  return ok();
}
