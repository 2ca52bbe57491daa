// /dev/null and its kin.
#include "tracee.h"

int main(void) {
  watch();
  int null = MUST(open("/dev/null", O_RDWR)), zero = MUST(open("/dev/zero", O_RDONLY)),
      full = MUST(open("/dev/full", O_RDWR));
  int random = MUST(open("/dev/urandom", O_RDONLY | O_CLOEXEC)),
      strong = MUST(open("/dev/random", O_RDONLY | O_NONBLOCK));
  char* mapped = MUST(mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
  fill(mapped, 32768, 6);
  ready();
  do {
    char page[4096];
    uint64_t a = 0, b = 0;
    CHECK(write(null, page, 4096) == 4096 && read(null, page, 1) == 0, "/dev/null");
    memset(page, 1, sizeof page);
    CHECK(read(zero, page, 4096) == 4096, "/dev/zero");
    for (int i = 0; i < 4096; i++) CHECK(page[i] == 0, "/dev/zero gives %d", page[i]);
    CHECK(write(full, "x", 1) == -1 && errno == ENOSPC, "/dev/full");
    CHECK(read(random, &a, 8) == 8 && read(strong, &b, 8) == 8 && a != b, "/dev/urandom");
    verify("mapped /dev/zero", mapped, 32768, 6);
    for (int i = 32768; i < 65536; i++) CHECK(mapped[i] == 0, "mapped /dev/zero has %d", mapped[i]);
  } while (running_slowly());
  return ok();
}
