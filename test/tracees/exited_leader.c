// The main thread has ended, the others go on: descriptors, memory and signals of the process are theirs.
#include "tracee.h"

static pid_t leader;
static void* work(void* main_thread) {
  char path[64], line[256];
  pthread_join(*(pthread_t*)main_thread, NULL);
  int file = MUST(open("exited_leader.data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  snprintf(path, sizeof path, "/proc/%d/task/%d/stat", leader, leader);
  char state = 0;
  do {  // joined is not yet a zombie
    int stat = MUST(open(path, O_RDONLY));
    ssize_t length = read(stat, line, sizeof line - 1);
    line[length > 0 ? length : 0] = 0;
    sscanf(strrchr(line, ')') + 1, " %c", &state);
    close(stat);
  } while (state != 'Z');
  watch();
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++) {
    uint64_t back;
    CHECK(getpid() == leader && syscall(SYS_gettid) != leader, "we are the leader now");
    CHECK(pwrite(file, &turn, 8, 0) == 8 && pread(file, &back, 8, 0) == 8 && back == turn, "file");
  }
  exit(ok());
}

int main(void) {
  static pthread_t main_thread, other;
  watch();
  leader = getpid();
  main_thread = pthread_self();
  pthread_create(&other, NULL, work, &main_thread);
  pthread_exit(NULL);
}
