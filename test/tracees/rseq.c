// Restartable sequences: every thread's area stays registered and its processor number stays right.
#include <linux/rseq.h>
#include <sys/rseq.h>

#include "tracee.h"

static volatile bool over;

static void check(void) {
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  // Registered already: the kernel says so; with another signature it would say EPERM.
  long again = syscall(SYS_rseq, area, 32, 0, RSEQ_SIG);
  CHECK(again == -1 && errno == EBUSY, "rseq is not registered any more (%s)",
        again == 0 ? "could be again" : strerror(errno));
  for (int attempt = 0;; attempt++) {
    unsigned before = *(volatile unsigned*)&area->cpu_id, cpu, after;
    getcpu(&cpu, NULL);
    after = *(volatile unsigned*)&area->cpu_id;
    if (before == cpu && cpu == after) return;
    CHECK(attempt < 1000, "rseq says processor %u, getcpu %u", before, cpu);
  }
}
/// Adds one in a critical section; when it is interrupted the kernel sends us to `abort`, and nothing was added.
static bool add(uint64_t* counter) {
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  __asm__ volatile goto(
      ".pushsection __rseq_cs, \"aw\"\n .balign 32\n 3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n"
      "lea 3b(%%rip), %%rax\n movq %%rax, %[cs]\n"
      "1: mov (%[counter]), %%rax\n mov $200, %%ecx\n 5: dec %%ecx\n jnz 5b\n add $1, %%rax\n mov %%rax, "
      "(%[counter])\n 2:\n"
      "jmp 6f\n .byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n 4: jmp %l[aborted]\n 6:\n"
      :
      : [cs] "m"(area->rseq_cs), [counter] "r"(counter)
      : "rax", "rcx", "memory", "cc"
      : aborted);
  return true;
aborted:
  return false;
}
static void* work(void* unused) {
  (void)unused;
  uint64_t counter = 0, done = 0;
  while (!over) {
    for (int i = 0; i < 20000; i++) done += add(&counter);
    CHECK(counter == done, "%lu sections ended, %lu were counted", done, counter);
    check();
  }
  return NULL;
}

int main(void) {
  watch();
  CHECK(__rseq_size != 0, "the C library registers no rseq");
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) threads[i] = thread(work, NULL);
  ready();
  while (running_slowly()) check();
  over = true;
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  check();
  return ok();
}
