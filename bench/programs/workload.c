// What the benchmarks move: so much memory, dirtied so fast, so many threads. Says "ready", and at SIGUSR1 what it has
// seen since the last one: as a line of JSON.
//
//   workload [--mib N] [--shared-mib N] [--dirty-mbps N] [--threads N] [--touch]
//
// --touch reads one page after another at random and measures how long each read took: after a post-copy restart that
// is the time of a fault.
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static atomic_int asked, over;
static char* memory;
static size_t bytes, dirty_per_second;
static atomic_ullong dirtied;

static void on_signal(int signal) {
  if (signal == SIGTERM) over = 1;
  if (signal == SIGUSR1) asked = 1;
}
static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
}
static void nap(long ns) {
  struct timespec time = {0, ns};
  nanosleep(&time, NULL);
}
static uint64_t random_number(void) {
  static __thread uint64_t state;
  if (state == 0) state = (uint64_t)now() | 1;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/// Writes one word into a page of its own, `dirty_per_second` bytes of pages each second, a millisecond's worth at a
/// time.
static void* dirty(void* unused) {
  size_t page = 0;
  int64_t begin = now();
  uint64_t due_before = 0;
  while (!over) {
    uint64_t due = (uint64_t)((now() - begin) / 1e9 * dirty_per_second / 4096);
    // A pause is not made up for: the rate is what it is while the program runs.
    if (due - due_before > dirty_per_second / 4096 / 20) {
      begin += (int64_t)((due - due_before) * 4096 * 1e9 / dirty_per_second);
      continue;
    }
    for (; due_before < due; due_before++) {
      *(volatile uint64_t*)(memory + page * 4096) = due_before;
      page = (page + 1) % (bytes / 4096);
      dirtied++;
    }
    nap(1000000);
  }
  return unused;
}
static void* idle(void* unused) {
  while (!over) nap(20000000);
  return unused;
}

enum { BUCKETS = 200000 };  // of a microsecond
static unsigned histogram[BUCKETS];
static void report(int64_t longest) {
  uint64_t count = 0, seen = 0;
  int p50 = 0, p99 = 0;
  for (int i = 0; i < BUCKETS; i++) count += histogram[i];
  for (int i = 0; i < BUCKETS; i++) {
    seen += histogram[i];
    if (p50 == 0 && seen * 2 >= count) p50 = i;
    if (p99 == 0 && seen * 100 >= count * 99) p99 = i;
  }
  printf("{\"longest_us\": %ld, \"faults\": %lu, \"p50_us\": %d, \"p99_us\": %d, \"dirtied_pages\": %llu}\n",
         (long)(longest / 1000), count, p50, p99, (unsigned long long)dirtied);
  fflush(stdout);
  memset(histogram, 0, sizeof histogram);
}
/// A read slower than this didn't find its page.
enum { FAULT_NS = 4000 };
static int64_t touch(void) {
  volatile char* page = memory + random_number() % (bytes / 4096) * 4096;
  int64_t begin = now();
  (void)*page;
  int64_t took = now() - begin;
  if (took >= FAULT_NS) histogram[took / 1000 < BUCKETS ? took / 1000 : BUCKETS - 1]++;
  return took;
}

int main(int count, char** arguments) {
  size_t mib = 1, shared = 0;
  int threads = 1, touching = 0;
  const struct option options[] = {{"mib", 1, 0, 'm'},     {"shared-mib", 1, 0, 's'}, {"dirty-mbps", 1, 0, 'd'},
                                   {"threads", 1, 0, 't'}, {"touch", 0, 0, 'x'},      {0}};
  for (int option; (option = getopt_long(count, arguments, "", options, NULL)) != -1;) {
    if (option == 'm') mib = strtoul(optarg, NULL, 10);
    if (option == 's') shared = strtoul(optarg, NULL, 10);
    if (option == 'd') dirty_per_second = strtoul(optarg, NULL, 10) * 1000000;
    if (option == 't') threads = atoi(optarg);
    if (option == 'x') touching = 1;
    if (option == '?') return 2;
  }
  signal(SIGTERM, on_signal);
  signal(SIGUSR1, on_signal);
  bytes = (shared ? shared : mib) << 20;
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return perror("mmap"), 1;
  for (size_t i = 0; i < bytes / 8; i++) ((uint64_t*)memory)[i] = i * 0x9e3779b97f4a7c15ull + 1;
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (dirty_per_second) pthread_create(&thread, NULL, dirty, NULL);
  for (int i = 1; i < threads; i++) pthread_create(&thread, NULL, idle, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  puts("ready");
  fflush(stdout);
  int64_t longest = 0;
  while (!over) {
    if (touching) {
      int64_t took = touch();
      if (took > longest) longest = took;
    }
    nap(touching ? 20000 : 1000000);
    if (asked) {
      asked = 0;
      report(longest);
      longest = 0;
    }
  }
  return 0;
}
