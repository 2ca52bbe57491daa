// Guard gaps: pages that fault go on faulting, in the same way, and their neighbours don't.
#include <setjmp.h>

#include "tracee.h"

static sigjmp_buf back;
static volatile sig_atomic_t code;
static void on_fault(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)context;
  code = info->si_code;
  siglongjmp(back, 1);
}
/// The si_code of the fault that a write there brings; 0 when it brings none.
static int fault(volatile char* where) {
  code = 0;
  if (sigsetjmp(back, 1) == 0) *where = *where;
  return code;
}
static void check(char* pages) {
  verify("below the gap", pages, 4096, 1);
  verify("above the gap", pages + 2 * 4096, 4096, 3);
  CHECK(fault(pages + 4096) == SEGV_ACCERR, "PROT_NONE gives %d", code);
  CHECK(fault(pages + 3 * 4096) == SEGV_ACCERR, "PROT_READ gives %d at a write", code);
  CHECK(fault(pages + 4 * 4096) == SEGV_MAPERR, "an unmapped gap gives %d", code);
  CHECK(fault(pages + 5 * 4096) == 0, "the last page faults");
}

int main(void) {
  watch();
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  MUST(sigaction(SIGSEGV, &action, NULL));
  char* pages = map(6 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  for (int i = 0; i < 6; i++) fill(pages + i * 4096, 4096, i + 1);
  MUST(mprotect(pages + 4096, 4096, PROT_NONE));
  MUST(mprotect(pages + 3 * 4096, 4096, PROT_READ));
  MUST(munmap(pages + 4 * 4096, 4096));
  ready();
  do check(pages);
  while (running_slowly());
  check(pages);
  return ok();
}
