// Mappings of a file that has been deleted, shared and private: the content lives only there.
#include "tracee.h"

enum { BYTES = 256 * 4096 };

int main(void) {
  watch();
  int file = MUST(open("deleted_map.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(ftruncate(file, BYTES));
  char* shared = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  fill(shared + 4096, BYTES - 4096, 3);
  char* private = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
  fill(private, 4096, 4);
  MUST(unlink("deleted_map.data"));
  close(file);
  ready();
  for (uint64_t turn = 0; running_slowly(); turn++) {
    verify("shared", shared + 4096, BYTES - 4096, 3);
    ((volatile uint64_t*)shared)[0] = turn;
    verify("own page", private, 4096, 4);
    verify("page of the file", private + 4096, BYTES - 4096, 3);
  }
  shared[2 * 4096] = 77;
  CHECK(private[2 * 4096] == 77, "the two mappings are no longer of one file");
  return ok();
}
