#include "pod/root.hpp"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.hpp"

namespace godwit::pod {

namespace {

constexpr long overlay_magic = 0x794c7630;  // OVERLAYFS_SUPER_MAGIC

bool is_overlay(const std::string& path) {
  struct statfs status {};
  return statfs(path.c_str(), &status) == 0 && status.f_type == overlay_magic;
}

/// What the file system says about its own failure, if anything.
std::string explanation(int context) {
  std::string all;
  char line[512];
  ssize_t got = 0;
  while ((got = ::read(context, line, sizeof line)) > 0) {
    all += all.empty() ? "" : "; ";
    all.append(line, static_cast<std::size_t>(got));
    while (!all.empty() && all.back() == '\n') all.pop_back();
  }
  return all;
}

Result<void> mount_overlay(const Root& root) {
  const Fd context(fsopen("overlay", FSOPEN_CLOEXEC));
  if (!context) return fail_errno("open the overlay file system");
  // Renamed directories and copied attributes stay in the upper layer as other kernels understand them too.
  const std::pair<const char*, const char*> options[] = {
      {"source", "overlay"},
      {"lowerdir", "/"},
      {"upperdir", root.upper.c_str()},
      {"workdir", root.work.c_str()},
      {"redirect_dir", "off"},
      {"index", "off"},
      {"metacopy", "off"},
  };
  for (const auto& [key, value] : options)
    if (fsconfig(context.get(), FSCONFIG_SET_STRING, key, value, 0) != 0) {
      auto error = fail_errno("overlay {}={}", key, value);
      error.error().hint = explanation(context.get());
      return error;
    }
  if (fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    auto error = fail_errno("mount the pod's root (upper layer {})", root.upper);
    error.error().hint = explanation(context.get());
    if (error.error().hint.empty() && is_overlay("/"))
      error.error().hint = "the node's root is an overlay already, and the kernel stacks at most two";
    return error;
  }
  const Fd mount(fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount) return fail_errno("mount the pod's root");
  if (move_mount(mount.get(), "", AT_FDCWD, root.merged.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
    return fail_errno("mount the pod's root at {}", root.merged);
  return {};
}

Result<void> mount_new(const char* type, const std::string& target, unsigned long flags, const char* options) {
  if (mkdir(target.c_str(), 0755) != 0 && errno != EEXIST) return fail_errno("mkdir {} in the pod", target);
  if (::mount(type, target.c_str(), type, flags, options) != 0) return fail_errno("mount {} in the pod", target);
  return {};
}

Result<void> make_device(const char* path, unsigned major, unsigned minor) {
  if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) != 0) return fail_errno("mknod {} in the pod", path);
  return {};
}

Result<void> make_link(const char* to, const char* path) {
  if (symlink(to, path) != 0) return fail_errno("symlink {} in the pod", path);
  return {};
}

Result<void> fill_dev() {
  TRY(mount_new("tmpfs", "/dev", MS_NOSUID, "mode=755,size=4m"));
  TRY(make_device("/dev/null", 1, 3));
  TRY(make_device("/dev/zero", 1, 5));
  TRY(make_device("/dev/full", 1, 7));
  TRY(make_device("/dev/random", 1, 8));
  TRY(make_device("/dev/urandom", 1, 9));
  TRY(make_device("/dev/tty", 5, 0));
  TRY(make_link("pts/ptmx", "/dev/ptmx"));
  TRY(make_link("/proc/self/fd", "/dev/fd"));
  TRY(make_link("/proc/self/fd/0", "/dev/stdin"));
  TRY(make_link("/proc/self/fd/1", "/dev/stdout"));
  TRY(make_link("/proc/self/fd/2", "/dev/stderr"));
  TRY(mount_new("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
  return mount_new("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
}

/// The state directory holds every pod's files. It is seen from inside only when it lies on the root's file system.
Result<void> hide(const std::string& path) {
  struct stat status {};
  if (path.empty() || stat((path + "/pods").c_str(), &status) != 0) return {};
  if (::mount("tmpfs", path.c_str(), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=4k") != 0)
    return fail_errno("hide {} from the pod", path);
  return {};
}

}  // namespace

Result<void> check_upper_place(const std::string& directory) {
  if (!is_overlay(directory)) return {};
  return std::unexpected(Error{ErrorKind::refused,
                               fmt::format("{} lies on an overlay, and an overlay's upper layer can't", directory), 0,
                               "set state_dir to a directory on ext4, xfs, btrfs or tmpfs"});
}

Result<void> enter_root(const Root& root) {
  // Nothing that happens here may show in the node's own mount namespace.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return fail_errno("make mounts private");
  TRY(mount_overlay(root));
  if (chdir(root.merged.c_str()) != 0) return fail_errno("chdir {}", root.merged);
  if (syscall(SYS_pivot_root, ".", ".") != 0) return fail_errno("pivot_root to {}", root.merged);
  // The old root lies over the new one; without it the way is free.
  if (umount2(".", MNT_DETACH) != 0) return fail_errno("umount the node's root");
  if (chdir("/") != 0) return fail_errno("chdir / in the pod");

  const mode_t mask = umask(0);
  TRY(mount_new("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr));
  TRY(mount_new("sysfs", "/sys", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr));
  TRY(fill_dev());
  TRY(hide(root.hidden));
  umask(mask);
  return {};
}

Result<void> close_node_settings() {
  for (const char* path : {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi"}) {
    if (::access(path, F_OK) != 0) continue;
    constexpr unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (::mount(path, path, nullptr, MS_BIND, nullptr) != 0 ||
        ::mount(nullptr, path, nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY | flags, nullptr) != 0)
      return fail_errno("make {} read-only in the pod", path);
  }
  return {};
}

}  // namespace godwit::pod
