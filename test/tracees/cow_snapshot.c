// varies: processes
// What redis does to save: children forked again and again check the snapshot they took while the parent goes on
// writing.
#include "tracee.h"

enum { WORDS = 1 << 18 };
static uint64_t* table;
static uint64_t sum_at_fork;

static uint64_t sum(void) {
  uint64_t total = 0;
  for (int i = 0; i < WORDS; i++) total += table[i] * (i + 1);
  return total;
}
static int save(void) {
  for (int i = 0; i < 20; i++) CHECK(sum() == sum_at_fork, "the snapshot changed under the child");
  return 0;
}

int main(void) {
  watch();
  table = map(WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  fill(table, WORDS * 8, 0);
  uint64_t total = sum();
  pid_t saver = 0;
  for (uint64_t turn = 1; running(); turn++) {
    if (saver == 0) {
      sum_at_fork = total;
      saver = child(save);
    }
    for (int k = 0; k < 200; k++) {
      size_t i = pattern(turn, k) % WORDS;
      total += (turn - table[i]) * (i + 1);
      table[i] = turn;
    }
    int status;
    if (waitpid(saver, &status, WNOHANG) == saver) {
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a saving child ended with status 0x%x", status);
      saver = 0;
    }
    if (turn == 1) ready();
  }
  if (saver) finish_child(saver);
  CHECK(sum() == total, "the parent's table differs");
  return ok();
}
