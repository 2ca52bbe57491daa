// Pipes: content, capacity, packet mode, a closed end, non-blocking ends, and one that is written and read by two
// processes all the time.
#include "tracee.h"

static int stream[2];
static int writer(void) {
  close(stream[0]);
  for (uint64_t number = 0; !told_to_finish; number++) {
    if (number % 1000 == 0) same_process();
    if (number % 64 == 0) pause_ms(1);
    if (told_to_finish) break;
    ssize_t wrote = write(stream[1], &number, 8);
    if (wrote < 0 && errno == EINTR) break;
    CHECK(wrote == 8, "write to the pipe: %zd %s", wrote, strerror(errno));
  }
  return 0;
}
static bool next(uint64_t* number) {
  size_t got = 0;
  while (got < 8) {
    ssize_t length = read(stream[0], (char*)number + got, 8 - got);
    if (length < 0 && errno == EINTR) continue;
    if (length == 0) return false;
    got += MUST(length);
  }
  return true;
}

int main(void) {
  watch();
  int full[2], packets[2], half[2];
  char page[4096], text[64];
  MUST(pipe2(stream, O_CLOEXEC));
  MUST(pipe2(full, O_NONBLOCK));
  MUST(pipe2(packets, O_DIRECT | O_NONBLOCK));
  MUST(pipe(half));
  MUST(fcntl(full[1], F_SETPIPE_SZ, 256 * 1024));
  fill(page, 4096, 3);
  int pages = 0;
  while (write(full[1], page, 4096) == 4096) pages++;
  for (int i = 1; i <= 5; i++) MUST(write(packets[1], "packet", i));
  MUST(write(half[1], "last words", 10));
  close(half[1]);
  pid_t pid = child(writer);
  close(stream[1]);
  uint64_t expected = 0, number;
  ready();
  while (running()) {
    CHECK(next(&number) && number == expected, "the pipe gives %lu, should be %lu", number, expected);
    expected++;
  }
  MUST(kill(pid, SIGTERM));
  for (; next(&number); expected++) CHECK(number == expected, "the pipe gives %lu, should be %lu", number, expected);
  int status;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the writer ended with 0x%x", status);
  CHECK(fcntl(full[0], F_GETPIPE_SZ) == 256 * 1024, "capacity %d", fcntl(full[0], F_GETPIPE_SZ));
  CHECK(write(full[1], page, 4096) == -1 && errno == EAGAIN, "the full pipe is not full");
  for (; pages > 0; pages--) {
    CHECK(read(full[0], page, 4096) == 4096, "%d pages are missing", pages);
    verify("pipe", page, 4096, 3);
  }
  CHECK(read(full[0], page, 1) == -1 && errno == EAGAIN, "the pipe has more than was written");
  for (int i = 1; i <= 5; i++) CHECK(read(packets[0], text, sizeof text) == i, "packet %d has another length", i);
  CHECK(read(half[0], text, sizeof text) == 10 && memcmp(text, "last words", 10) == 0,
        "content of the half-closed pipe");
  CHECK(read(half[0], text, sizeof text) == 0, "no end of file");
  return ok();
}
