// Shared anonymous memory, written by two processes in turns; pages never touched stay zero.
#include "tracee.h"

enum { BYTES = 4 << 20 };
static struct {
  _Atomic uint64_t turn;
  uint64_t words[512];
} * board;
static char* area;

static void play(uint64_t mine) {
  uint64_t turn = atomic_load(&board->turn);
  if (turn % 2 != mine) return (void)sched_yield();
  verify("board", board->words, sizeof board->words, turn);
  size_t page = turn % (BYTES / 4096 / 2);
  fill(area + page * 4096, 4096, turn);
  fill(board->words, sizeof board->words, turn + 1);
  atomic_store(&board->turn, turn + 1);
}
static int second(void) {
  while (running()) play(1);
  return 0;
}

int main(void) {
  watch();
  board = map(8192, PROT_READ | PROT_WRITE, MAP_SHARED);
  area = map(BYTES, PROT_READ | PROT_WRITE, MAP_SHARED);
  fill(board->words, sizeof board->words, 0);
  pid_t other = child(second);
  ready();
  while (running()) play(0);
  uint64_t before = atomic_load(&board->turn);
  for (int64_t end = milliseconds() + 5000; atomic_load(&board->turn) < before + 10;) {
    play(0);
    CHECK(milliseconds() < end, "the two processes no longer see the same memory");
  }
  finish_child(other);
  uint64_t turns = atomic_load(&board->turn), pages = BYTES / 4096 / 2;
  for (uint64_t turn = turns < pages ? 0 : turns - pages; turn < turns; turn++)
    verify("area", area + turn % pages * 4096, 4096, turn);
  for (int i = BYTES / 2; i < BYTES; i++) CHECK(area[i] == 0, "untouched shared page has %d", area[i]);
  return ok();
}
