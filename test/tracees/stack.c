// The stack: frames in use keep their content, and it still grows by itself.
#include "tracee.h"

static int deep(int depth) {
  uint64_t frame[512];
  fill(frame, sizeof frame, depth);
  if (depth < 300) {
    deep(depth + 1);
  } else {
    static int said;
    if (!said++) ready();
    if (running()) pause_ms(1);
  }
  verify("frame", frame, sizeof frame, depth);
  return depth;
}
static int deeper(int left) {
  volatile char frame[60000];
  frame[0] = frame[sizeof frame - 1] = (char)left;
  return left == 0 ? frame[0] : deeper(left - 1) + frame[0] * 0;
}

int main(void) {
  watch();
  while (running()) deep(0);
  CHECK(deeper(100) == 0, "the stack doesn't grow");  // 6 MB, of the usual 8
  return ok();
}
