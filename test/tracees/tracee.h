#pragma once
// What every tracee shares. A tracee sets something up, says "ready", works and checks itself all the time until
// SIGTERM, checks once more, says "ok" and exits 0. Whatever differs it prints and exits 1. Its processes check by
// themselves that they are who they were and that their clocks go on steadily.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  pid_t process, thread, parent, group, session;
} Identity;

static volatile sig_atomic_t told_to_finish;
static Identity was;
static int64_t last_monotonic, last_boottime;

/// Says what differs and ends the whole program with 1.
__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text - 1, format, arguments);
  va_end(arguments);
  if (length > (int)sizeof text - 2) length = sizeof text - 2;
  text[length++] = '\n';
  if (write(1, text, length) != length) abort();
  _exit(1);
}

/// Ends the program unless `what` holds; the text says what was expected and what was found.
#define CHECK(what, ...)   \
  do {                     \
    if (!(what)) {         \
      die("" __VA_ARGS__); \
    }                      \
  } while (0)
/// A system call that must not fail.
#define MUST(call)                                                                                      \
  ({                                                                                                    \
    __typeof__(call) result_ = (call);                                                                  \
    if ((intptr_t)result_ == -1) die("%s:%d: %s: %s", __FILE_NAME__, __LINE__, #call, strerror(errno)); \
    result_;                                                                                            \
  })

static inline int64_t nanoseconds(clockid_t clock) {
  struct timespec now;
  MUST(clock_gettime(clock, &now));
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}
static inline int64_t milliseconds(void) {
  return nanoseconds(CLOCK_MONOTONIC) / 1000000;
}
static inline void pause_ms(int64_t ms) {
  int64_t end = milliseconds() + ms;
  struct timespec until = {end / 1000, end % 1000 * 1000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR && !told_to_finish) {
  }
}

static inline Identity identity(void) {
  return (Identity){getpid(), (pid_t)syscall(SYS_gettid), getppid(), getpgrp(), getsid(0)};
}

static void tracee_on_term(int signal) {
  (void)signal;
  told_to_finish = 1;
}

/// Begins watching this process (its calling thread): at the start and after each fork.
static inline void watch(void) {
  struct sigaction action = {.sa_handler = tracee_on_term};
  MUST(sigaction(SIGTERM, &action, NULL));
  was = identity();
  last_monotonic = nanoseconds(CLOCK_MONOTONIC);
  last_boottime = nanoseconds(CLOCK_BOOTTIME);
}

/// ns; more than any pause, also of a pod in doubt, and much less than any offset of a node.
static const int64_t longest_pause = 120000000000ll;

/// What no move may change, checked by the thread that called `watch`.
static inline void same_process(void) {
  Identity is = identity();
  CHECK(is.process == was.process && is.thread == was.thread, "pid %d tid %d were %d %d", is.process, is.thread,
        was.process, was.thread);
  CHECK(is.parent == was.parent, "parent %d was %d", is.parent, was.parent);
  CHECK(is.group == was.group && is.session == was.session, "group %d session %d were %d %d", is.group, is.session,
        was.group, was.session);
  int64_t monotonic = nanoseconds(CLOCK_MONOTONIC), boottime = nanoseconds(CLOCK_BOOTTIME);
  struct timespec raw;
  MUST(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &raw));
  int64_t called = raw.tv_sec * 1000000000ll + raw.tv_nsec;
  // The vdso and the kernel must mean the same namespace.
  CHECK(called >= monotonic && called - monotonic < longest_pause, "vdso clock %ld, kernel's %ld", (long)monotonic,
        (long)called);
  CHECK(monotonic >= last_monotonic, "CLOCK_MONOTONIC went back by %ld ns", (long)(last_monotonic - monotonic));
  CHECK(boottime >= last_boottime, "CLOCK_BOOTTIME went back by %ld ns", (long)(last_boottime - boottime));
  CHECK(monotonic - last_monotonic < longest_pause, "CLOCK_MONOTONIC jumped by %ld ms",
        (long)(monotonic - last_monotonic) / 1000000);
  CHECK(boottime - last_boottime < longest_pause, "CLOCK_BOOTTIME jumped by %ld ms",
        (long)(boottime - last_boottime) / 1000000);
  last_monotonic = monotonic;
  last_boottime = boottime;
}

/// False once the runner has told us to finish.
static inline bool running(void) {
  same_process();
  return !told_to_finish;
}
/// As running(), with a rest between two rounds of work.
static inline bool running_slowly(void) {
  if (!told_to_finish) pause_ms(2);
  return running();
}

static inline void ready(void) {
  CHECK(write(1, "ready\n", 6) == 6, "stdout is closed");
}
static inline int ok(void) {
  same_process();
  CHECK(write(1, "ok\n", 3) == 3, "stdout is closed");
  return 0;
}

/// Forks a child that runs `work` and exits with what it returns; it gets SIGTERM when we call `finish_child`.
static inline pid_t child(int (*work)(void)) {
  pid_t pid = MUST(fork());
  if (pid == 0) {
    watch();
    _exit(work());
  }
  return pid;
}
/// Tells a child to finish, and demands that it found nothing wrong.
static inline void finish_child(pid_t pid) {
  int status = 0;
  MUST(kill(pid, SIGTERM));
  while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR, "waitpid %d: %s", pid, strerror(errno));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", pid, status);
}

struct beginning {
  void* (*work)(void*);
  void* argument;
  atomic_int begun;
};
static void* begin_thread(void* given) {
  struct beginning* beginning = given;
  void* (*work)(void*) = beginning->work;
  void* argument = beginning->argument;
  beginning->begun = 1;
  return work(argument);
}
/// Starts a thread that SIGTERM doesn't interrupt. Returns when it has left the C library, which begins with all
/// signals blocked.
static inline pthread_t thread(void* (*work)(void*), void* argument) {
  sigset_t term, before;
  pthread_t made;
  struct beginning beginning = {work, argument, 0};
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &before);
  int failed = pthread_create(&made, NULL, begin_thread, &beginning);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  CHECK(failed == 0, "pthread_create: %s", strerror(failed));
  while (!beginning.begun) sched_yield();
  return made;
}

/// Content that tells where it belongs: nothing that was moved, lost or doubled looks right by chance.
static inline uint64_t pattern(uint64_t place, uint64_t turn) {
  uint64_t x = place * 0x9e3779b97f4a7c15ull + turn * 0xbf58476d1ce4e5b9ull + 1;
  x ^= x >> 29;
  x *= 0x94d049bb133111ebull;
  return x ^ (x >> 32);
}
static inline void fill(void* memory, size_t bytes, uint64_t turn) {
  uint64_t* words = memory;
  for (size_t i = 0; i < bytes / 8; i++) words[i] = pattern(i, turn);
}
static inline void verify(const char* what, const void* memory, size_t bytes, uint64_t turn) {
  const uint64_t* words = memory;
  for (size_t i = 0; i < bytes / 8; i++)
    CHECK(words[i] == pattern(i, turn), "%s: offset %zu is %lx, should be %lx", what, i * 8, (long)words[i],
          (long)pattern(i, turn));
}

/// A fresh mapping.
static inline void* map(size_t bytes, int protection, int flags) {
  return MUST(mmap(NULL, bytes, protection, flags | MAP_ANONYMOUS, -1, 0));
}
static inline void* shared_page(void) {
  return map(4096, PROT_READ | PROT_WRITE, MAP_SHARED);
}

/// The number after "NAME:" in a file of /proc, summed over all its lines of this name; -1 when there is none.
static inline long proc_number(const char* path, const char* name, int base) {
  char line[4096];
  long sum = -1;
  FILE* file = fopen(path, "r");
  CHECK(file != NULL, "%s: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    size_t length = strlen(name);
    if (strncmp(line, name, length) == 0 && line[length] == ':')
      sum = (sum < 0 ? 0 : sum) + (long)strtoull(line + length + 1, NULL, base);
  }
  fclose(file);
  return sum;
}
