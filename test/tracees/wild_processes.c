// varies: processes threads maps descriptors
// Forks, vforks, executes itself, exits and starts threads wildly; every child reports what it saw by its exit status.
#include "tracee.h"

static char* self;
static uint64_t* table;

static void* short_thread(void* number) {
  pthread_t more;
  if ((uintptr_t)number % 4 == 3) {  // threads start threads
    pthread_create(&more, NULL, short_thread, (void*)((uintptr_t)number - 1));
    pthread_join(more, NULL);
  }
  return (void*)((uintptr_t)number + (uintptr_t)syscall(SYS_gettid) * 1000);
}
static int forked(void) {
  verify("inherited", table, 64 * 4096, 11);
  pthread_t threads[3];
  for (uintptr_t i = 0; i < 3; i++) pthread_create(&threads[i], NULL, short_thread, (void*)i);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  fill(table, 64 * 4096, getpid());
  verify("own", table, 64 * 4096, getpid());
  return 42;
}
static int grandparent(void) {  // leaves an orphan behind, that ends by itself
  pid_t pid = fork();
  if (pid == 0) {
    pause_ms(5);
    _exit(getppid() == 0);
  }
  return pid < 0;
}
static pid_t executed(bool share, char* number) {
  pid_t pid = share ? vfork() : fork();
  if (pid == 0) {
    execl("/proc/self/exe", self, number, NULL);
    _exit(99);
  }
  return pid;
}
static void expect(pid_t pid, int wanted) {
  int status;
  while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == wanted, "child %d: status 0x%x, should exit with %d", pid, status,
        wanted);
}

int main(int count, char** arguments) {
  watch();
  self = arguments[0];
  if (count > 1) {  // executed again
    char* copy = strdup("content of the new program");
    pause_ms(atoi(arguments[1]) % 3);
    return strcmp(copy, "content of the new program") == 0 ? 17 : 1;
  }
  table = map(64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  fill(table, 64 * 4096, 11);
  for (uint64_t turn = 1; running(); turn++) {
    pid_t pids[4];
    void* result;
    pthread_t other;
    char number[16];
    snprintf(number, sizeof number, "%d", (int)(turn % 10));
    for (int i = 0; i < 2; i++) pids[i] = child(i ? grandparent : forked);
    for (int i = 2; i < 4; i++) pids[i] = executed(i == 2, number);
    pthread_create(&other, NULL, short_thread, (void*)7);
    CHECK(pthread_join(other, &result) == 0 && (uintptr_t)result % 1000 == 7, "a thread returned %p", result);
    int wanted[] = {42, 0, 17, 17};
    for (int i = 0; i < 4; i++) expect(pids[i], wanted[i]);
    verify("table", table, 64 * 4096, 11);
    if (turn == 2) ready();
  }
  return ok();
}
