// Pages that parent, child and grandchild share copy-on-write stay shared, and what one changed is its own.
#include "tracee.h"

enum { PAGES = 4096, CHANGED = 512 };
static char* memory;

/// How many of the pages are mapped by this process alone (bit 56 of its pagemap).
static int exclusive(void) {
  uint64_t entries[PAGES];
  int file = MUST(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)), count = 0;
  CHECK(pread(file, entries, sizeof entries, (uintptr_t)memory / 4096 * 8) == (ssize_t)sizeof entries, "pagemap");
  close(file);
  for (int i = 0; i < PAGES; i++) count += entries[i] >> 63 && (entries[i] >> 56 & 1);
  return count;
}
static void look(uint64_t turn, int from) {
  verify("changed", memory + from * 4096, CHANGED * 4096, turn);
  verify("inherited", memory + 2 * CHANGED * 4096, (PAGES - 2 * CHANGED) * 4096, 1);
}
static void settled(const char* who) {
  // Its own pages and no more: a tenth above that is allowed for what was just being copied.
  int own = exclusive();
  CHECK(own <= CHANGED + PAGES / 10, "%s has %d pages of its own, should be %d: what was shared is no longer", who, own,
        CHANGED);
}
static int grandchild(void) {
  fill(memory + CHANGED * 4096, CHANGED * 4096, 3);
  while (running_slowly()) look(3, CHANGED);
  look(3, CHANGED);
  settled("grandchild");
  return 0;
}
static int middle(void) {
  fill(memory, CHANGED * 4096, 2);
  pid_t pid = child(grandchild);
  while (running_slowly()) look(2, 0);
  look(2, 0);
  finish_child(pid);
  return 0;
}

int main(void) {
  watch();
  memory = map(PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  for (int i = 0; i < 2; i++) fill(memory + i * CHANGED * 4096, CHANGED * 4096, 1);
  fill(memory + 2 * CHANGED * 4096, (PAGES - 2 * CHANGED) * 4096, 1);
  pid_t pid = child(middle);
  pause_ms(100);
  ready();
  while (running_slowly()) look(1, 0);
  look(1, CHANGED);
  settled("parent");
  finish_child(pid);
  return ok();
}
