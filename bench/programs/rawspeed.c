// What this machine can do at best, to hold a migration against: measured in the same run, with the same system calls.
//
//   rawspeed receive PORT               takes one connection's bytes
//   rawspeed send HOST PORT MIB         fills one connection
//   rawspeed answer PORT                gives back what it gets, 64 bytes at a time
//   rawspeed ask HOST PORT COUNT        round trips
//   rawspeed read MIB                   another process's memory, by process_vm_readv
//   rawspeed fill MIB                   missing pages, by UFFDIO_COPY
//
// Each prints one line of JSON: seconds by the clock, processor seconds, and what else there is to say.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, BLOCK = 1 << 20 };
static char block[BLOCK];

static double clock_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}
static double processor(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}
static void check(int right, const char* what) {
  if (!right) perror(what), exit(1);
}
static void said(double begin, double used, size_t bytes) {
  printf("{\"seconds\": %.6f, \"processor\": %.6f, \"bytes\": %zu}\n", clock_now() - begin, processor() - used, bytes);
}
static int prepared(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  check(fd >= 0, "socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  return fd;
}
static int accepted(const char* port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  int listener = prepared();
  check(bind(listener, (struct sockaddr*)&at, sizeof at) == 0 && listen(listener, 1) == 0, "listen");
  fprintf(stderr, "listening\n");
  int fd = accept(listener, NULL, NULL), one = 1;
  check(fd >= 0, "accept");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}
static int connected(const char* host, const char* port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  int fd = prepared();
  check(inet_pton(AF_INET, host, &at.sin_addr) == 1 && connect(fd, (struct sockaddr*)&at, sizeof at) == 0, host);
  return fd;
}
static int by_number(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void receive(char** arguments) {
  int fd = accepted(arguments[0]);
  double begin = clock_now(), used = processor();
  size_t total = 0;
  for (ssize_t got; (got = read(fd, block, BLOCK)) > 0; total += got) {
  }
  said(begin, used, total);
}
static void send_all(char** arguments) {
  int fd = connected(arguments[0], arguments[1]);
  size_t mib = strtoul(arguments[2], NULL, 10);
  double begin = clock_now(), used = processor();
  for (size_t i = 0; i < mib; i++)
    for (ssize_t sent = 0, now; sent < BLOCK; sent += now)
      check((now = write(fd, block + sent, BLOCK - sent)) > 0, "write");
  shutdown(fd, SHUT_WR);
  check(read(fd, block, 1) == 0, "the other side");  // until all has arrived
  said(begin, used, mib << 20);
}
static void answer(char** arguments) {
  int fd = accepted(arguments[0]);
  for (ssize_t got; (got = read(fd, block, 64)) > 0;) check(write(fd, block, got) == got, "write");
}
static void ask(char** arguments) {
  int fd = connected(arguments[0], arguments[1]), count = atoi(arguments[2]);
  double* took = calloc(count, sizeof *took);
  for (int i = 0; i < count; i++) {
    double begin = clock_now();
    check(write(fd, block, 64) == 64 && recv(fd, block, 64, MSG_WAITALL) == 64, "round trip");
    took[i] = (clock_now() - begin) * 1e6;
  }
  qsort(took, count, sizeof *took, by_number);
  printf("{\"p50_us\": %.1f, \"p99_us\": %.1f}\n", took[count / 2], took[count * 99 / 100]);
}
static void read_other(char** arguments) {
  size_t bytes = strtoul(arguments[0], NULL, 10) << 20;
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(memory, 7, bytes);
  pid_t other = fork();
  if (other == 0) {
    memset(memory, 8, bytes);  // pages of its own
    kill(getppid(), SIGCONT);
    for (;;) pause();
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCONT);
  int signal;
  sigwait(&set, &signal);
  double begin = clock_now(), used = processor();
  for (size_t at = 0; at < bytes; at += BLOCK) {
    struct iovec here = {block, BLOCK}, there = {memory + at, BLOCK};
    check(process_vm_readv(other, &here, 1, &there, 1, 0) == BLOCK, "process_vm_readv");
  }
  said(begin, used, bytes);
  kill(other, SIGKILL);
  waitpid(other, NULL, 0);
}
static void fill(char** arguments) {
  size_t bytes = strtoul(arguments[0], NULL, 10) << 20;
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register range = {.range = {(uintptr_t)memory, bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  check(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0, "userfaultfd");
  memset(block, 9, sizeof block);
  double begin = clock_now(), used = processor();
  for (size_t at = 0; at < bytes; at += CHUNK) {
    struct uffdio_copy copy = {.dst = (uintptr_t)memory + at, .src = (uintptr_t)block + at % BLOCK, .len = CHUNK};
    check(ioctl(fd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
  }
  said(begin, used, bytes);
}

int main(int count, char** arguments) {
  const struct {
    const char* name;
    int words;
    void (*run)(char**);
  } modes[] = {{"receive", 1, receive}, {"send", 3, send_all},   {"answer", 1, answer},
               {"ask", 3, ask},         {"read", 1, read_other}, {"fill", 1, fill}};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCONT);
  sigprocmask(SIG_BLOCK, &set, NULL);
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (count > 1 && strcmp(arguments[1], modes[i].name) == 0 && count == modes[i].words + 2)
      return modes[i].run(arguments + 2), 0;
  fprintf(
      stderr,
      "usage: rawspeed receive PORT | send HOST PORT MIB | answer PORT | ask HOST PORT COUNT | read MIB | fill MIB\n");
  return 2;
}
