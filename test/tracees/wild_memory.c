// varies: maps
// Maps, unmaps, remaps, moves, shrinks, grows, protects and drops memory wildly, and checks what it holds.
#include "tracee.h"

enum { SLOTS = 200, MOST = 64 };
static struct {
  char* memory;
  size_t pages;
  uint64_t turn;
  int protection;
} slots[SLOTS];

static size_t bytes(int i) {
  return slots[i].pages * 4096;
}
static void check(int i) {
  char what[100];
  for (size_t page = 0; page < slots[i].pages; page++) {
    snprintf(what, sizeof what, "slot %d, page %zu of %zu, protection %x, turn %lu", i, page, slots[i].pages,
             (unsigned)slots[i].protection, (unsigned long)slots[i].turn);
    verify(what, slots[i].memory + page * 4096, 4096, slots[i].turn + page);
  }
}
static void write_all(int i, uint64_t turn) {
  slots[i].turn = turn;
  for (size_t page = 0; page < slots[i].pages; page++) fill(slots[i].memory + page * 4096, 4096, turn + page);
}
static void step(uint64_t turn) {
  uint64_t random = pattern(turn, 99);
  int i = random % SLOTS;
  size_t want = 1 + (random >> 8) % MOST;
  bool writable = slots[i].protection == (PROT_READ | PROT_WRITE);
  if (slots[i].memory == NULL) {
    bool shared = random >> 20 & 1;
    slots[i].pages = want;
    slots[i].memory = map(bytes(i), PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE);
    slots[i].protection =
        shared ? PROT_READ | PROT_WRITE | 0x100 : PROT_READ | PROT_WRITE;  // shared ones are not resized
    write_all(i, turn);
    return;
  }
  check(i);
  switch (random >> 40 & 7) {
    case 0:
      MUST(munmap(slots[i].memory, bytes(i)));
      slots[i].memory = NULL;
      break;
    case 1: {  // a new mapping in the same place
      if (!writable) break;
      MUST(mmap(slots[i].memory, bytes(i), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
      for (size_t k = 0; k < bytes(i); k += 64)
        CHECK(slots[i].memory[k] == 0, "a new mapping holds %d", slots[i].memory[k]);
      write_all(i, turn);
      break;
    }
    case 2:
      if (slots[i].protection & 0x100) break;
      if (want > slots[i].pages) want = slots[i].pages;  // the rest would be zeros, and perhaps read-only
      slots[i].memory = MUST(mremap(slots[i].memory, bytes(i), want * 4096, MREMAP_MAYMOVE));
      slots[i].pages = want;
      break;
    case 3: {  // to another place
      char* place = map(bytes(i), PROT_NONE, MAP_PRIVATE);
      slots[i].memory = MUST(mremap(slots[i].memory, bytes(i), bytes(i), MREMAP_MAYMOVE | MREMAP_FIXED, place));
      break;
    }
    case 4:
      if (slots[i].protection & 0x100) break;
      slots[i].protection = PROT_READ;
      MUST(mprotect(slots[i].memory, bytes(i), PROT_READ));
      break;
    case 5:
      if (!writable) break;
      MUST(madvise(slots[i].memory, bytes(i), MADV_DONTNEED));
      for (size_t k = 0; k < bytes(i); k += 4096)
        CHECK(slots[i].memory[k] == 0, "dropped memory holds %d", slots[i].memory[k]);
      write_all(i, turn);
      break;
    default:
      if (slots[i].protection & PROT_WRITE) write_all(i, turn);
  }
  if (slots[i].memory) check(i);
}

int main(void) {
  watch();
  for (uint64_t turn = 1; turn < 500 || running(); turn++) {
    step(turn);
    if (turn == 400) ready();
    if (turn % 32 == 0) pause_ms(1);
  }
  for (int i = 0; i < SLOTS; i++)
    if (slots[i].memory) check(i);
  return ok();
}
