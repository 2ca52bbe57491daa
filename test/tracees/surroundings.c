// What surrounds a process: umask, cwd, root, exe, arguments, environment, auxv, name, limits, personality, oom score,
// parent-death signal.
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include "tracee.h"

typedef struct {
  char cwd[256], root[64], exe[256], name[16], arguments[512], environment[4096], auxv[1024], oom[16], filter[16];
  char host[65];
  struct rlimit limits[RLIM_NLIMITS];
  int mask, persona, death, thp, timer;
} Surroundings;

static void slurp(const char* path, char* into, size_t size) {
  int file = MUST(open(path, O_RDONLY | O_CLOEXEC));
  ssize_t length = 0, got;
  while (length < (ssize_t)size && (got = MUST(read(file, into + length, size - length))) > 0) length += got;
  close(file);
}
static Surroundings now(void) {
  Surroundings is;
  struct utsname names;
  memset(&is, 0, sizeof is);
  MUST(uname(&names));
  strcpy(is.host, names.nodename);
  MUST(readlink("/proc/self/cwd", is.cwd, sizeof is.cwd - 1));
  MUST(readlink("/proc/self/root", is.root, sizeof is.root - 1));
  MUST(readlink("/proc/self/exe", is.exe, sizeof is.exe - 1));
  prctl(PR_GET_NAME, is.name);
  slurp("/proc/self/cmdline", is.arguments, sizeof is.arguments);
  slurp("/proc/self/environ", is.environment, sizeof is.environment);
  slurp("/proc/self/auxv", is.auxv, sizeof is.auxv);
  slurp("/proc/self/oom_score_adj", is.oom, sizeof is.oom);
  slurp("/proc/self/coredump_filter", is.filter, sizeof is.filter);
  for (int i = 0; i < RLIM_NLIMITS; i++) MUST(getrlimit(i, &is.limits[i]));
  is.mask = umask(0);
  umask(is.mask);
  is.persona = personality(0xffffffff);
  prctl(PR_GET_PDEATHSIG, &is.death);
  is.thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
  return is;
}

int main(void) {
  watch();
  mkdir("surroundings.dir", 0700);
  MUST(chdir("surroundings.dir"));
  umask(0127);
  prctl(PR_SET_NAME, "another name");
  MUST(personality(ADDR_NO_RANDOMIZE));
  MUST(prctl(PR_SET_PDEATHSIG, SIGWINCH));
  MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
  for (int i = 0; i < RLIM_NLIMITS; i++) {
    struct rlimit limit;
    MUST(getrlimit(i, &limit));
    if (i == RLIMIT_CORE) limit.rlim_cur = 12345;
    if (i == RLIMIT_NOFILE) limit = (struct rlimit){100, 200};
    if (i == RLIMIT_STACK) limit.rlim_cur = 4 << 20;
    if (i == RLIMIT_FSIZE) limit.rlim_cur = 1l << 40;
    if (i == RLIMIT_MEMLOCK && limit.rlim_max > 4096) limit.rlim_cur = 4096;
    setrlimit(i, &limit);
  }
  int file = open("/proc/self/oom_score_adj", O_WRONLY);
  MUST(write(file, "321", 3));
  close(file);
  file = open("/proc/self/coredump_filter", O_WRONLY);
  MUST(write(file, "0x13", 4));
  close(file);
  Surroundings before = now();
  ready();
  while (running_slowly()) {
    Surroundings is = now();
    const char* names[] = {"cwd", "root", "exe", "name"};
    const char *a[] = {is.cwd, is.root, is.exe, is.name}, *b[] = {before.cwd, before.root, before.exe, before.name};
    for (int i = 0; i < 4; i++) CHECK(strcmp(a[i], b[i]) == 0, "%s is %s, was %s", names[i], a[i], b[i]);
    for (size_t i = 0; i < sizeof is; i++)
      CHECK(((char*)&is)[i] == ((char*)&before)[i], "byte %zu of the surroundings differs", i);
  }
  return ok();
}
