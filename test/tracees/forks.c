// varies: processes
// Forks all the time: children that end at once and look at a page that nobody has touched since it was filled, and a
// few that stay and look at all of it. With a number: so many MiB, from the first SIGUSR2 on as fast as it can, with a
// dot for each 100 forks, and few of the children look. Each may wait for a slow link even so: many are there at a
// time.
#include "tracee.h"

enum { STAYING = 8, PAGE = 4096 };
static uint64_t* memory;
static size_t pages = 4 << 8;
static volatile sig_atomic_t told;
static void tell(int number) {
  told = number;
}
static uint64_t turn, turns_between_looks = 8;
static int at_once = 16;

static void look(size_t page) {
  const size_t first = page * PAGE / 8;
  for (size_t i = first; i < first + PAGE / 8; i++)
    CHECK(memory[i] == pattern(i, 0), "page %zu of a child is %lx, should be %lx", page, (long)memory[i],
          (long)pattern(i, 0));
}
static int glance(void) {
  if (turn % turns_between_looks == 0) look(pattern(turn, 1) % pages);
  return 0;
}
static int stay(void) {
  for (size_t page = pattern(turn, 2); running_slowly(); page++) look(page % pages);
  for (size_t page = 0; page < pages; page++) look(page);
  return 0;
}

int main(int count, char** arguments) {
  if (count > 1) {
    pages = (size_t)atoi(arguments[1]) << 8;
    turns_between_looks = 256;
    at_once = 256;
    signal(SIGUSR2, tell);
  }
  watch();
  memory = map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  fill(memory, pages * PAGE, 0);
  pid_t staying[STAYING];
  int stay_now = 0, glancing = 0;
  if (count > 1) ready();
  while (count > 1 && told == 0 && running_slowly()) pause_ms(5);
  for (turn = 0; running(); turn++) {
    if (turn % 50 == 0 && stay_now < STAYING) staying[stay_now++] = child(stay);
    child(glance);
    glancing++;
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, glancing < at_once ? WNOHANG : 0)) > 0) {
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", pid, status);
      glancing--;
    }
    if (turn == 50 && count == 1) ready();
    if (count == 1) pause_ms(5);
    if (count > 1 && turn % 100 == 99) CHECK(write(STDOUT_FILENO, ".", 1) == 1, "write: %s", strerror(errno));
  }
  while (glancing > 0) {
    int status;
    pid_t pid = waitpid(-1, &status, 0);
    CHECK(pid > 0 || errno == EINTR, "waitpid: %s", strerror(errno));
    if (pid > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", pid, status);
    if (pid > 0) glancing--;
  }
  for (int i = 0; i < stay_now; i++) finish_child(staying[i]);
  verify("the parent's memory", memory, pages * PAGE, 0);
  return ok();
}
