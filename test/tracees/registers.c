// 64 threads, each with its own values in general, x87, SSE and AVX registers all the time, and its own rounding mode.
#include "tracee.h"

enum { THREADS = 64 };
static atomic_int alive;

/// Holds values in registers only, for thousands of turns, and returns how many came back different.
__attribute__((noinline)) static long hold(uint64_t seed, bool avx) {
  uint64_t in[8], vectors[32], general[4], out[32];
  uint32_t control, mode = 0x1f80 | (seed % 4) << 13;
  for (int i = 0; i < 4; i++) in[i] = pattern(i, seed);
  for (int i = 0; i < 32; i++) vectors[i] = pattern(100 + i, seed);
  double fp = seed + 0.5, fp_out = 0;
  __asm__ volatile("ldmxcsr %0" ::"m"(mode));
  __asm__ volatile(
      "mov %[in], %%rax\n mov (%%rax), %%r12\n mov 8(%%rax), %%r13\n mov 16(%%rax), %%r14\n mov 24(%%rax), %%r15\n"
      "fldl %[fp]\n"
      "cmp $0, %[avx]\n je 1f\n"
      "vmovdqu (%[v]), %%ymm0\n vmovdqu 32(%[v]), %%ymm1\n vmovdqu 64(%[v]), %%ymm7\n vmovdqu 96(%[v]), %%ymm8\n"
      "vmovdqu 128(%[v]), %%ymm12\n vmovdqu 160(%[v]), %%ymm13\n vmovdqu 192(%[v]), %%ymm14\n vmovdqu 224(%[v]), "
      "%%ymm15\n"
      "1: mov $400000, %%ecx\n"
      "2: add $1, %%r12\n sub $1, %%r12\n dec %%ecx\n jnz 2b\n"
      "mov %[general], %%rax\n mov %%r12, (%%rax)\n mov %%r13, 8(%%rax)\n mov %%r14, 16(%%rax)\n mov %%r15, 24(%%rax)\n"
      "fstpl %[fpout]\n"
      "cmp $0, %[avx]\n je 3f\n"
      "vmovdqu %%ymm0, (%[o])\n vmovdqu %%ymm1, 32(%[o])\n vmovdqu %%ymm7, 64(%[o])\n vmovdqu %%ymm8, 96(%[o])\n"
      "vmovdqu %%ymm12, 128(%[o])\n vmovdqu %%ymm13, 160(%[o])\n vmovdqu %%ymm14, 192(%[o])\n vmovdqu %%ymm15, "
      "224(%[o])\n"
      "3:\n"
      : [fpout] "=m"(fp_out)
      : [in] "m"((uint64_t*){in}), [general] "m"((uint64_t*){general}), [fp] "m"(fp), [avx] "r"((int)avx),
        [v] "r"(vectors), [o] "r"(out)
      : "rax", "rcx", "r12", "r13", "r14", "r15", "st", "xmm0", "xmm1", "xmm7", "xmm8", "xmm12", "xmm13", "xmm14",
        "xmm15", "memory", "cc");
  __asm__ volatile("stmxcsr %0" : "=m"(control));
  long wrong = 0;
  for (int i = 0; i < 4; i++) wrong += general[i] != in[i];
  for (int i = 0; avx && i < 32; i++) wrong += out[i] != vectors[i];
  return wrong + (fp_out != fp) + ((control & 0x6000) != (mode & 0x6000));
}
static void* work(void* number) {
  bool avx = __builtin_cpu_supports("avx");
  alive++;
  while (!told_to_finish) {
    long wrong = hold((uintptr_t)number, avx);
    CHECK(wrong == 0, "thread %lu: %ld registers differ", (uintptr_t)number, wrong);
  }
  return NULL;
}

int main(void) {
  pthread_t threads[THREADS];
  watch();
  for (uintptr_t i = 0; i < THREADS; i++) threads[i] = thread(work, (void*)(i + 1));
  while (alive < THREADS) sched_yield();
  ready();
  while (running_slowly()) {
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  return ok();
}
