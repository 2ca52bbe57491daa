#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "cli/playground_parts.hpp"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

/// Making a host. `up` forks a helper that leaves into new namespaces and forks the host's PID 1 there. They speak over
/// one socket, each message a letter and a text: the helper sends "P" and the pid; PID 1 waits for "G" (go), or for the
/// end of `up`, and ends with it; it sends "R" when the root stands, or "E" and what went wrong.
namespace godwit::cli::playground {

namespace fs = std::filesystem;

namespace {

constexpr int leave_everything =
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP;

void tell(int channel, char letter, const std::string& text = {}) {
  const std::string message = letter + text;
  (void)!send(channel, message.data(), message.size(), MSG_NOSIGNAL);
}

Result<std::string> hear(int channel, char letter, const std::string& who) {
  char message[8192];
  const ssize_t size = recv(channel, message, sizeof message, 0);
  if (size <= 0) return fail(ErrorKind::failed, "{} ended while it was being made", who);
  const std::string text(message + 1, static_cast<std::size_t>(size - 1));
  if (message[0] != letter) return fail(ErrorKind::failed, "{}: {}", who, text);
  return text;
}

Result<void> mount_at(const char* type, const std::string& at, unsigned long flags, const std::string& options) {
  std::error_code error;
  fs::create_directories(at, error);
  if (mount(type, at.c_str(), type, flags, options.c_str()) != 0) return fail_errno("mount {} at {}", type, at);
  return {};
}

Result<void> bind_at(const std::string& from, const std::string& to, bool read_only = false) {
  std::error_code error;
  if (fs::is_directory(from, error))
    fs::create_directories(to, error);
  else
    Fd(open(to.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0755));
  if (mount(from.c_str(), to.c_str(), nullptr, MS_BIND, nullptr) != 0) return fail_errno("bind {} to {}", from, to);
  if (read_only && mount(nullptr, to.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) != 0)
    return fail_errno("make {} read-only", to);
  return {};
}

/// The devices that a program may expect, and those that godwitd needs, by this machine's numbers.
Result<void> make_devices(const std::string& dev) {
  TRY(mount_at("tmpfs", dev, MS_NOSUID, "mode=755,size=64k"));
  for (const char* path :
       {"null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "userfaultfd", "net/tun"}) {
    struct stat original {};
    if (stat(fmt::format("/dev/{}", path).c_str(), &original) != 0) continue;
    const std::string device = fmt::format("{}/{}", dev, path);
    std::error_code error;
    fs::create_directories(fs::path(device).parent_path(), error);
    if (mknod(device.c_str(), original.st_mode, original.st_rdev) != 0) return fail_errno("make the device {}", device);
    chmod(device.c_str(), original.st_mode & 07777);
  }
  TRY(mount_at("devpts", dev + "/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"));
  TRY(mount_at("tmpfs", dev + "/shm", MS_NOSUID | MS_NODEV, "mode=1777"));
  if (auto mqueue = mount_at("mqueue", dev + "/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""); !mqueue)
    rmdir((dev + "/mqueue").c_str());
  for (const auto& [name, target] : {std::pair{"ptmx", "pts/ptmx"},
                                     {"fd", "/proc/self/fd"},
                                     {"stdin", "/proc/self/fd/0"},
                                     {"stdout", "/proc/self/fd/1"},
                                     {"stderr", "/proc/self/fd/2"}})
    if (symlink(target, fmt::format("{}/{}", dev, name).c_str()) != 0) return fail_errno("make {}/{}", dev, name);
  return {};
}

/// The same hierarchies at the same places; the host's own cgroup is their root.
Result<void> mount_cgroups(const std::string& root, const std::vector<Hierarchy>& all) {
  for (const auto& hierarchy : all)
    if (hierarchy.mount.starts_with("/sys/fs/cgroup/")) {
      TRY(mount_at("tmpfs", root + "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755"));
      break;
    }
  for (const auto& hierarchy : all)
    TRY(mount_at(hierarchy.v2 ? "cgroup2" : "cgroup", root + hierarchy.mount, MS_NOSUID | MS_NODEV | MS_NOEXEC,
                 hierarchy.options));
  return {};
}

/// In the host's mount namespace, as its PID 1.
Result<void> build_root(const State& state, const Host& host, const std::vector<Hierarchy>& cgroups) {
  const std::string own = directory_of(state.name, host.name);
  const std::string root = own + "/root";
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return fail_errno("make mounts private");
  const std::string layers = fmt::format("lowerdir=/,upperdir={}/upper,workdir={}/work", own, own);
  TRY(mount_at("overlay", root, 0, layers));
  TRY(mount_at("proc", root + "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""));
  TRY(mount_at("sysfs", root + "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""));
  TRY(mount_cgroups(root, cgroups));
  TRY(make_devices(root + "/dev"));
  TRY(mount_at("tmpfs", root + "/run", MS_NOSUID | MS_NODEV, "mode=755"));
  // A pod's upper layer can't lie on an overlay.
  TRY(bind_at(own + "/state", root + "/var/lib/godwit"));
  // Through its root a host would see the other hosts' files.
  TRY(mount_at("tmpfs", root + base_directory(), MS_NOSUID | MS_NODEV | MS_RDONLY, "mode=700,size=4k"));
  if (host.node) {
    TRY(bind_at(state.godwitd, root + "/usr/local/bin/godwitd", true));
    TRY(bind_at(fs::read_symlink("/proc/self/exe"), root + "/usr/local/bin/godwit", true));
  }
  if (chdir(root.c_str()) != 0 || syscall(SYS_pivot_root, ".", ".") != 0) return fail_errno("enter the root {}", root);
  if (umount2(".", MNT_DETACH) != 0 || chdir("/") != 0) return fail_errno("leave the old root");
  if (sethostname(host.name.data(), host.name.size()) != 0) return fail_errno("set the host name");
  return {};
}

/// Reaps, for ever. Only SIGKILL from outside ends it, and with it the host.
[[noreturn]] void keep() {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, nullptr);
  for (;;) {
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    siginfo_t info;
    sigwaitinfo(&all, &info);
  }
}

/// Leaves nothing of the command that made us: its streams, its session, its directory.
void detach(int channel) {
  setsid();
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
  // The channel is kept as 3.
  dup2(channel, 3);
  fcntl(3, F_SETFD, FD_CLOEXEC);
  syscall(SYS_close_range, 4, ~0U, 0);
  (void)!chdir("/");
}

[[noreturn]] void be_pid_1(const State& state, const Host& host, const std::vector<Hierarchy>& cgroups) {
  const int channel = 3;
  if (!hear(channel, 'G', "up")) _exit(1);
  prctl(PR_SET_NAME, ("host-" + host.name).c_str());
  umask(022);
  if (auto built = build_root(state, host, cgroups); !built) {
    tell(channel, 'E', built.error().message());
    _exit(1);
  }
  tell(channel, 'R');
  close(channel);
  keep();
}

/// Different on every host, and not in the order of the names: a clock that is only copied jumps, one way or the other.
std::string clock_offsets(const State& state, const Host& host) {
  std::size_t place = 0;
  while (state.hosts[place].name != host.name) ++place;
  const std::uint64_t monotonic = 1000 + (place + 1) * 1'300'021ULL % 3'000'000;
  return fmt::format("monotonic {} {}\nboottime {} {}\n", monotonic, 111'111'111 * (place + 1) % 1'000'000'000,
                     monotonic + 5000 * (place + 1), 987'654'321 * (place + 1) % 1'000'000'000);
}

Result<pid_t> leave(const State& state, const Host& host) {
  const auto cgroups = TRY(hierarchies());
  TRY(join_cgroups(state, host.name, ""));
  if (unshare(leave_everything) != 0) return fail_errno("make namespaces");
  TRY(join_cgroups(state, host.name, "init"));
  if (unshare(CLONE_NEWTIME) != 0) return fail_errno("make a time namespace");
  Fd offsets(open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
  const std::string clocks = clock_offsets(state, host);
  if (!offsets || write(offsets.get(), clocks.data(), clocks.size()) < 0) return fail_errno("set the clocks' offsets");
  offsets.reset();
  const pid_t child = fork();
  if (child < 0) return fail_errno("fork");
  if (child == 0) be_pid_1(state, host, cgroups);
  return child;
}

/// Forks a process that does `work` with a channel to us. Returns our end of it.
Result<Fd> fork_with_channel(pid_t& child, const std::function<void(int)>& work) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("make a socket pair");
  Fd ours(ends[0]), theirs(ends[1]);
  child = fork();
  if (child < 0) return fail_errno("fork");
  if (child == 0) {
    detach(theirs.get());
    work(3);
    _exit(0);
  }
  return ours;
}

}  // namespace

Result<void> start_host(State& state, Host& host, const std::function<Result<void>()>& written_down) {
  const std::string own = directory_of(state.name, host.name);
  for (const char* part : {"", "/upper", "/work", "/root", "/state"}) {
    std::error_code error;
    fs::create_directories(own + part, error);
    if (error) return fail(ErrorKind::failed, "make {}{}: {}", own, part, error.message());
  }
  const std::string who = "host " + host.name;
  pid_t helper = 0;
  const Fd channel = TRY(fork_with_channel(helper, [&](int there) {
    auto left = leave(state, host);
    if (left)
      tell(there, 'P', std::to_string(*left));
    else
      tell(there, 'E', left.error().message());
  }));
  auto pid = hear(channel.get(), 'P', who);
  waitpid(helper, nullptr, 0);
  if (!pid) return std::unexpected(std::move(pid.error()));
  host.pid = std::atoi(pid->c_str());
  host.start = start_time(host.pid);
  // Until this is on disk, PID 1 ends with us; afterwards `down` finds it.
  TRY(written_down());
  tell(channel.get(), 'G');
  TRY(hear(channel.get(), 'R', who));
  return {};
}

Result<void> start_wire(State& state, const std::function<Result<void>()>& written_down) {
  pid_t keeper = 0;
  const Fd channel = TRY(fork_with_channel(keeper, [](int there) {
    if (unshare(CLONE_NEWNET) != 0) return tell(there, 'E', "make a network namespace");
    tell(there, 'P');
    if (!hear(there, 'G', "up")) return;
    prctl(PR_SET_NAME, "host-wire");
    tell(there, 'R');
    close(there);
    keep();
  }));
  TRY(hear(channel.get(), 'P', "the wire"));
  state.wire = keeper;
  state.wire_start = start_time(keeper);
  TRY(written_down());
  tell(channel.get(), 'G');
  TRY(hear(channel.get(), 'R', "the wire"));
  return {};
}

Result<Fd> network_of(pid_t pid, std::uint64_t start, const std::string& who) {
  const Fd process = TRY(open_process(pid, start, who));
  Fd network(open(fmt::format("/proc/{}/ns/net", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!network) return fail_errno("open the network namespace of {}", who);
  if (!alive(pid, start)) return fail(ErrorKind::gone, "{} is not running", who);
  return network;
}

Result<void> in_network(int netns, const std::function<Result<void>()>& work) {
  Result<void> result;
  std::thread([&] {
    if (setns(netns, CLONE_NEWNET) != 0)
      result = fail_errno("enter a network namespace");
    else
      result = work();
  }).join();
  return result;
}

}  // namespace godwit::cli::playground
