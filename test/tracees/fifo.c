// FIFOs: content, both ends, one opened for both, and an open that waits for a partner.
#include "tracee.h"

static volatile bool over;
static void* open_waits(void* unused) {
  int fd = MUST(open("fifo.lonely", O_RDONLY));
  CHECK(over, "open() returned without a partner");
  char byte;
  CHECK(read(fd, &byte, 1) == 1 && byte == 'y', "lonely FIFO");
  return unused;
}

int main(void) {
  watch();
  char page[4096];
  for (int i = 0; i < 3; i++) {
    const char* names[] = {"fifo.a", "fifo.b", "fifo.lonely"};
    unlink(names[i]);
    MUST(mkfifo(names[i], 0600));
  }
  int reader = MUST(open("fifo.a", O_RDONLY | O_NONBLOCK)), writer = MUST(open("fifo.a", O_WRONLY));
  int both = MUST(open("fifo.b", O_RDWR));
  fill(page, 4096, 9);
  for (int i = 0; i < 10; i++) MUST(write(writer, page, 4096));
  MUST(write(both, page, 4096));
  pthread_t other = thread(open_waits, NULL);
  ready();
  for (int turn = 0; running_slowly(); turn++) {
    char now[4096];
    CHECK(read(reader, now, 4096) == 4096, "FIFO: %s", strerror(errno));
    verify("FIFO", now, 4096, 9);
    CHECK(write(writer, page, 4096) == 4096, "write to the FIFO: %s", strerror(errno));
    CHECK(read(both, now, 4096) == 4096 && write(both, now, 4096) == 4096, "FIFO opened for both");
  }
  over = true;
  int last = MUST(open("fifo.lonely", O_WRONLY));
  MUST(write(last, "y", 1));
  pthread_join(other, NULL);
  close(writer);
  for (int i = 0; i < 10; i++) {
    CHECK(read(reader, page, 4096) == 4096, "page %d of the FIFO", i);
    verify("FIFO", page, 4096, 9);
  }
  CHECK(read(reader, page, 4096) == 0, "no end of file");
  return ok();
}
