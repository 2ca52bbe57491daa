// varies: names
// Deleted files: content that has no name any more, a directory that is gone, and a file that still has another name.
#include "tracee.h"

int main(void) {
  watch();
  char page[4096];
  int gone = MUST(open("file_deleted.1", O_RDWR | O_CREAT | O_TRUNC, 0600));
  int linked = MUST(open("file_deleted.2", O_RDWR | O_CREAT | O_TRUNC, 0600));
  int replaced = MUST(open("file_deleted.4", O_RDWR | O_CREAT | O_TRUNC, 0600));
  int nameless = MUST(open(".", O_TMPFILE | O_RDWR, 0600));
  for (int i = 0; i < 256; i++) {
    fill(page, 4096, i);
    CHECK(write(gone, page, 4096) == 4096 && write(nameless, page, 4096) == 4096, "write");
  }
  MUST(lseek(gone, 5000, SEEK_SET));
  unlink("file_deleted.3");
  MUST(link("file_deleted.2", "file_deleted.3"));
  MUST(unlink("file_deleted.1"));
  MUST(unlink("file_deleted.2"));
  MUST(unlink("file_deleted.4"));
  int again = MUST(open("file_deleted.4", O_RDWR | O_CREAT | O_TRUNC, 0600));  // the same name, another file
  CHECK(write(again, "new", 3) == 3 && write(replaced, "old", 3) == 3, "write");
  ready();
  for (uint64_t turn = 1; running_slowly(); turn++) {
    uint64_t back;
    CHECK(pwrite(gone, &turn, 8, 8 << 20) == 8 && pread(gone, &back, 8, 8 << 20) == 8 && back == turn,
          "the deleted file");
    CHECK(pwrite(linked, &turn, 8, 0) == 8, "the linked file");
  }
  struct stat status, other;
  for (int i = 0; i < 256; i++) {
    CHECK(pread(gone, page, 4096, i * 4096) == 4096, "pread");
    verify("deleted", page, 4096, i);
    CHECK(pread(nameless, page, 4096, i * 4096) == 4096, "pread");
    verify("nameless", page, 4096, i);
  }
  CHECK(lseek(gone, 0, SEEK_CUR) == 5000, "position %ld", (long)lseek(gone, 0, SEEK_CUR));
  MUST(fstat(gone, &status));
  CHECK(status.st_nlink == 0, "the deleted file has %ld names", (long)status.st_nlink);
  MUST(fstat(linked, &status));
  MUST(stat("file_deleted.3", &other));
  CHECK(status.st_ino == other.st_ino && status.st_nlink == 1, "the other name is of another file");
  CHECK(access("file_deleted.1", F_OK) == -1 && access("file_deleted.2", F_OK) == -1, "a deleted name is back");
  char text[4] = {0};
  CHECK(pread(replaced, text, 3, 0) == 3 && strcmp(text, "old") == 0, "the replaced file has '%s'", text);
  CHECK(pread(again, text, 3, 0) == 3 && strcmp(text, "new") == 0, "the file in its place has '%s'", text);
  return ok();
}
