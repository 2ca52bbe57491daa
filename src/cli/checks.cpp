#include <fcntl.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/check.hpp"
#include "kernel/capabilities.hpp"
#include "kernel/netlink.hpp"
#include "kernel/pagemap.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/userfaultfd.hpp"
#include "node/cgroup_directory.hpp"
#include "node/credentials.hpp"
#include "node/privileges.hpp"
#include "pod/gate.hpp"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

namespace godwit::cli {
namespace {

constexpr int needed_major = 6, needed_minor = 9;
constexpr rlim_t useful_descriptors = 16384;

Result<void> kernel_version() {
  utsname name{};
  ::uname(&name);
  int major = 0, minor = 0;
  if (std::sscanf(name.release, "%d.%d", &major, &minor) != 2)
    return fail(ErrorKind::failed, "can't read the version {}", name.release);
  if (std::pair(major, minor) < std::pair(needed_major, needed_minor))
    return fail(ErrorKind::failed, "this is Linux {}", name.release);
  return {};
}

Result<void> architecture() {
  utsname name{};
  ::uname(&name);
  if (std::string(name.machine) != "x86_64") return fail(ErrorKind::failed, "this is {}", name.machine);
  return {};
}

Result<void> thread_pidfd() {
  (void)TRY(kernel::pidfd_open(HostPid{::getpid()}, true));
  return {};
}

/// A page that is written after arming must be the one that is found.
Result<void> dirty_tracking() {
  constexpr std::size_t size = 4 * page_size;
  auto* memory = static_cast<std::uint8_t*>(
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  if (memory == MAP_FAILED) return fail_errno("mmap");
  Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1)));
  if (!fd) return fail_errno("userfaultfd");
  auto tracker =
      TRY(kernel::Userfaultfd::handshake(std::move(fd), UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED));
  const auto begin = reinterpret_cast<RemoteAddress>(memory);
  TRY(tracker.register_range(begin, size, UFFDIO_REGISTER_MODE_WP));
  const auto pagemap = TRY(kernel::Pagemap::open(HostPid{::getpid()}));
  kernel::PageQuery query;
  query.mask = query.returned = kernel::page::written;
  query.write_protect = query.check = true;
  std::vector<kernel::PageRange> found;
  TRY(pagemap.scan(begin, begin + size, query, found));
  *static_cast<volatile std::uint8_t*>(memory + page_size) = 1;
  found.clear();
  TRY(pagemap.scan(begin, begin + size, query, found));
  if (found.size() != 1 || found[0].begin != begin + page_size || found[0].size() != page_size)
    return fail(ErrorKind::failed, "a written page was not found");
  return {};
}

Result<void> missing_faults() {
  Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd) return fail_errno("userfaultfd for the kernel's own faults");
  TRY(kernel::Userfaultfd::handshake(std::move(fd), UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                                        UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP));
  return {};
}

Result<void> cgroup_v2() {
  const std::string name = fmt::format("check-{}", ::getpid());
  const std::string path = TRY(node::prepare_cgroup("", name));
  const bool freezer = ::access((path + "/cgroup.freeze").c_str(), W_OK) == 0;
  const bool kill = ::access((path + "/cgroup.kill").c_str(), W_OK) == 0;
  ::rmdir(path.c_str());
  ::rmdir(std::filesystem::path(path).parent_path().c_str());  // stays where it is in use
  if (!freezer) return fail(ErrorKind::failed, "{} has no cgroup.freeze", path);
  if (!kill) return fail(ErrorKind::failed, "{} has no cgroup.kill", path);
  return {};
}

/// A cgroup of either version that limits memory and processors.
Result<void> limits() {
  std::ifstream file("/proc/self/mounts");
  bool memory = false, cpu = false;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string device, mount, type, options;
    fields >> device >> mount >> type >> options;
    std::string names;
    if (type == "cgroup") names = "," + options + ",";
    if (type == "cgroup2") {
      std::ifstream controllers(mount + "/cgroup.controllers");
      for (std::string word; controllers >> word;) names += "," + word + ",";
    }
    memory |= names.find(",memory,") != std::string::npos;
    cpu |= names.find(",cpu,") != std::string::npos;
  }
  if (!memory || !cpu) return fail(ErrorKind::failed, "no {} controller", memory ? "cpu" : "memory");
  return {};
}

Result<void> namespaces() {
  if (::unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) != 0)
    return fail_errno("unshare");
  return {};
}

Result<void> time_namespace() {
  if (::unshare(CLONE_NEWTIME) != 0) return fail_errno("unshare");
  const Fd offsets(::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
  const std::string text = "monotonic 5 0\nboottime 5 0\n";
  if (!offsets || ::write(offsets.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno("set its clocks");
  return {};
}

/// On the file system where pods will have theirs: not every one can be an upper layer.
Result<void> overlay(const std::string& state_dir) {
  if (::unshare(CLONE_NEWNS) != 0) return fail_errno("unshare");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return fail_errno("make / private");
  std::string parent = state_dir;
  while (::access(parent.c_str(), F_OK) != 0 && parent.size() > 1) parent = std::filesystem::path(parent).parent_path();
  std::string base = parent + "/.godwit-check-XXXXXX";
  if (::mkdtemp(base.data()) == nullptr) return fail_errno("make a directory in {}", parent);
  for (const char* name : {"/upper", "/work", "/merged"}) ::mkdir((base + name).c_str(), 0700);
  const std::string options = fmt::format("lowerdir=/,upperdir={0}/upper,workdir={0}/work", base);
  Result<void> mounted;
  if (::mount("overlay", (base + "/merged").c_str(), "overlay", 0, options.c_str()) != 0)
    mounted = fail_errno("mount one with its upper layer in {}", parent);
  if (mounted) ::umount2((base + "/merged").c_str(), MNT_DETACH);
  std::error_code ignored;
  std::filesystem::remove_all(base, ignored);
  return mounted;
}

/// The gate: TCX programs, their map, and a tap device.
Result<void> gate() {
  if (::unshare(CLONE_NEWNET) != 0) return fail_errno("unshare");
  const auto netlink = TRY(kernel::Netlink::open());
  TRY(netlink.create_bridge("gwcheck"));
  (void)TRY(pod::Gate::install("gwcheck", pod::Gate::State::hold));
  return {};
}

Result<void> veth() {
  if (::unshare(CLONE_NEWNET) != 0) return fail_errno("unshare");
  const auto netlink = TRY(kernel::Netlink::open());
  kernel::VethPair pair;
  pair.name = "gwcheck0";
  pair.peer_name = "gwcheck1";
  return netlink.create_veth(pair);
}

Result<void> tcp_repair() {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (!fd || ::setsockopt(fd.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0) return fail_errno("TCP_REPAIR");
  return {};
}

Result<void> real_time() {
  sched_param parameter{};
  parameter.sched_priority = 1;
  if (::sched_setscheduler(0, SCHED_FIFO, &parameter) != 0) return fail_errno("SCHED_FIFO");
  return {};
}

/// Seize a child, read its memory, take a descriptor of it.
Result<void> tracing() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  const auto attempt = [&]() -> Result<void> {
    const Fd pidfd = TRY(kernel::pidfd_open(HostPid{child}));
    (void)TRY(kernel::pidfd_getfd(pidfd.get(), 0));
    if (::ptrace(PTRACE_SEIZE, child, nullptr, nullptr) != 0) return fail_errno("PTRACE_SEIZE");
    return {};
  };
  auto done = attempt();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  return done;
}

/// A process with a number of our choice, as destinations make them.
Result<void> chosen_pid() {
  if (::unshare(CLONE_NEWPID) != 0) return fail_errno("unshare");
  const pid_t first = ::fork();
  if (first == 0) {
    pid_t wanted = 77;
    clone_args arguments{};
    arguments.exit_signal = SIGCHLD;
    arguments.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
    arguments.set_tid_size = 1;
    const long made = ::syscall(SYS_clone3, &arguments, sizeof arguments);
    if (made == 0) ::_exit(::getpid() == 77 ? 0 : 1);
    ::_exit(made == 77 ? 0 : 1);
  }
  int status = 0;
  ::waitpid(first, &status, 0);
  if (status != 0) return fail(ErrorKind::failed, "clone3 with set_tid doesn't work");
  return {};
}

/// What the daemon would keep and hasn't got, with what each is for.
Result<void> has_privileges(node::Privilege::Weight weight) {
  const auto have = TRY(kernel::permitted_capabilities(HostPid{0}));
  std::string missing;
  for (const auto& privilege : node::privileges())
    if (privilege.weight == weight && (have & kernel::capability(privilege.capability)) == 0)
      missing += fmt::format("{}{} ({})", missing.empty() ? "" : ", ",
                             kernel::to_text(kernel::capability(privilege.capability)), privilege.purpose);
  if (!missing.empty()) return fail(ErrorKind::failed, "without {}", missing);
  return {};
}

Result<void> descriptors() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < useful_descriptors)
    return fail(ErrorKind::failed, "RLIMIT_NOFILE is {} at most", limit.rlim_max);
  return {};
}

/// Good now and for a while, and known to nobody else.
Result<void> certificate(const node::Config& config) {
  using node::pki::Clock;
  const auto credentials = TRY(node::pki::Credentials::load(*config.tls, config.node));
  TRY(credentials->usable());
  // It renews itself long before: who sees this has been cut off from the authority's node.
  const auto life = node::pki::life_of(credentials->certificate());
  if (Clock::now() > life.end - (life.end - life.begin) / 6)
    return fail(ErrorKind::failed, "it is good until {} only, and wasn't renewed: is the node with the authority away?",
                node::pki::to_text(life.end));
  return {};
}

}  // namespace

std::vector<Check> all_checks(const node::Config& config) {
  using enum Weight;
  const std::string& state_dir = config.state_dir;
  std::vector<Check> checks{
      {"Linux 6.9 or newer", essential, "dirty pages and exited leaders can't be handled", "install a newer kernel",
       kernel_version},
      {"x86-64", essential, "the gadget exists for no other processor yet", "", architecture},
      {"capabilities", essential, "pods can't be built or taken apart", "run godwitd as root",
       [] { return has_privileges(node::Privilege::Weight::essential); }},
      {"namespaces: pid, mount, net, ipc, uts, cgroup", essential, "there can be no pods",
       "a kernel with all namespaces; user.max_*_namespaces above 0", namespaces},
      {"time namespaces", essential, "clocks would jump when a pod moves", "a kernel with CONFIG_TIME_NS",
       time_namespace},
      {"cgroup v2 with freezer", essential, "pods can't be pinned before the commit",
       "mount -t cgroup2 none /sys/fs/cgroup/unified", cgroup_v2},
      {"overlayfs below " + state_dir, essential, "pods can't have a root of their own",
       "modprobe overlay; state_dir must lie on ext4, xfs or btrfs, not on an overlay",
       [state_dir] { return overlay(state_dir); }},
      {"ptrace and pidfd_getfd", essential, "processes can't be captured", "sysctl kernel.yama.ptrace_scope=1 or lower",
       tracing},
      {"pidfds of threads", essential, "a process whose leader has exited can't be moved", "Linux 6.9", thread_pidfd},
      {"processes with a chosen pid (clone3 set_tid)", essential, "pods can't be rebuilt", "run godwitd as root",
       chosen_pid},
      {"dirty tracking: userfaultfd WP_ASYNC, PAGEMAP_SCAN", essential, "only strategy freeze would be possible",
       "a kernel with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP", dirty_tracking},
      {"missing faults of the kernel itself (userfaultfd)", feature, "no postcopy, hybrid or eager-dirty",
       "run godwitd as root, or sysctl vm.unprivileged_userfaultfd=1", missing_faults},
      {"TCP_REPAIR", feature, "pods with TCP connections are refused", "a kernel with CONFIG_CHECKPOINT_RESTORE",
       tcp_repair},
      {"veth devices", feature, "pods have no network but loopback", "modprobe veth", veth},
      {"bridge, TCX programs and TUN (the gate)", feature,
       "pods with a network can't be moved: packets would be lost in the freeze", "modprobe bridge tun; Linux 6.6",
       gate},
      {"cgroup limits for memory and processors", feature, "run --memory and --cpus are refused",
       "enable the memory and cpu controllers", limits},
      {"SCHED_FIFO", speed, "the freeze is up to five times as long under load",
       "CAP_SYS_NICE; in a v1 cpu cgroup: cpu.rt_runtime_us above 0", real_time},
      {"useful capabilities", feature, "what is named is slower, or not there", "run godwitd as root",
       [] { return has_privileges(node::Privilege::Weight::useful); }},
      {"capabilities for pods", feature, "root's pods don't have them", "run godwitd as root",
       [] { return has_privileges(node::Privilege::Weight::of_pods); }},
      {"many descriptors", speed, "large pods run out of descriptors while they are moved",
       "LimitNOFILE=1048576 in the unit", descriptors},
  };
  if (config.tls)
    checks.push_back({"this node's certificate", essential, "no other node talks to this one", "",
                      [config] { return certificate(config); }});
  return checks;
}

}  // namespace godwit::cli
