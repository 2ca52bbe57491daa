// Open directories: the position of a listing, names relative to them, and fchdir.
#include <dirent.h>

#include "tracee.h"

enum { FILES = 400 };

int main(void) {
  watch();
  MUST(mkdir("directory.d", 0750));
  int directory = MUST(open("directory.d", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  int place = MUST(open("directory.d", O_PATH | O_DIRECTORY));
  for (int i = 0; i < FILES; i++) {
    char name[32];
    snprintf(name, sizeof name, "file %d", i);
    close(MUST(openat(directory, name, O_WRONLY | O_CREAT, 0600)));
  }
  DIR* listing = fdopendir(MUST(dup(directory)));
  int seen[FILES] = {0}, number, entries = 0;
  struct dirent* entry;
  while (entries++ < 150 && (entry = readdir(listing)))
    if (sscanf(entry->d_name, "file %d", &number) == 1) seen[number]++;
  ready();
  while (running_slowly()) {
    MUST(mkdirat(place, "made", 0700));
    MUST(unlinkat(directory, "made", AT_REMOVEDIR));
  }
  while ((entry = readdir(listing)))
    if (sscanf(entry->d_name, "file %d", &number) == 1) seen[number]++;
  for (int i = 0; i < FILES; i++) CHECK(seen[i] == 1, "file %d was listed %d times", i, seen[i]);
  MUST(fchdir(place));
  MUST(access("file 7", F_OK));
  CHECK(fcntl(directory, F_GETFD) == FD_CLOEXEC, "close-on-exec");
  return ok();
}
