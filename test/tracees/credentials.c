// Who the process is: ids, groups, the five capability sets, securebits, no_new_privs; in a child that gave up root.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

#include "tracee.h"

typedef struct {
  uid_t uid[3];
  gid_t gid[3];
  gid_t groups[32];
  int group_count, fsuid, fsgid, securebits, no_new_privs, dumpable, ambient, bounding[64];
  struct __user_cap_data_struct caps[2];
} Credentials;

static Credentials now(void) {
  Credentials is = {0};
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  MUST(getresuid(&is.uid[0], &is.uid[1], &is.uid[2]));
  MUST(getresgid(&is.gid[0], &is.gid[1], &is.gid[2]));
  is.group_count = MUST(getgroups(32, is.groups));
  is.fsuid = setfsuid(-1);
  is.fsgid = setfsgid(-1);
  is.securebits = prctl(PR_GET_SECUREBITS);
  is.no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  is.dumpable = prctl(PR_GET_DUMPABLE);
  is.ambient = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0);
  for (int i = 0; i < 64; i++) is.bounding[i] = prctl(PR_CAPBSET_READ, i, 0, 0, 0);
  MUST(syscall(SYS_capget, &header, is.caps));
  return is;
}
static int compare(void) {
  Credentials before = now();
  while (running_slowly()) {
    Credentials is = now();
    for (size_t i = 0; i < sizeof is / 4; i++)
      CHECK(((int*)&is)[i] == ((int*)&before)[i], "uid %d: word %zu is %x, was %x", getuid(), i, ((int*)&is)[i],
            ((int*)&before)[i]);
  }
  return 0;
}
static int user(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct caps[2] = {
      {1 << CAP_CHOWN | 1 << CAP_KILL, 1 << CAP_CHOWN | 1 << CAP_KILL | 1 << CAP_NET_RAW, 1 << CAP_CHOWN}};
  MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
  MUST(setgroups(3, (gid_t[]){1000, 1001, 4242}));
  MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS));
  MUST(setresgid(1000, 1001, 1002));
  MUST(setresuid(1000, 1001, 1002));
  MUST(syscall(SYS_capset, &header, caps));
  MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
  return compare();
}
static int plain_user(void) {
  MUST(setgroups(0, NULL));
  MUST(setresgid(1000, 1000, 1000));
  MUST(setresuid(1000, 1000, 1000));
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  return compare();
}

int main(void) {
  watch();
  pid_t pids[2] = {child(user), child(plain_user)};
  pause_ms(100);
  ready();
  compare();
  for (int i = 0; i < 2; i++) finish_child(pids[i]);
  return ok();
}
