#include "pod/zygote.hpp"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <mutex>
#include <optional>

#include "pod/clocks.hpp"
#include "pod/init.hpp"
#include "pod/init_protocol.hpp"

namespace godwit::pod {

namespace {

Result<void> join(int cgroup_procs) {
  if (::write(cgroup_procs, "0", 1) != 1) return fail_errno("join the pod's cgroup");
  return {};
}

/// The network namespace that is made next gets a table of TCP connections of its own, and a small one. The node's has
/// a quarter of a million entries, and all of them are walked in a freeze to find the pod's sockets: 3 ms when the
/// table is not in the cache. (net.ipv4.tcp_child_ehash_entries, Linux 6.1.)
class SmallConnectionTable {
 public:
  SmallConnectionTable() : setting_(::open("/proc/sys/net/ipv4/tcp_child_ehash_entries", O_RDWR | O_CLOEXEC)) {
    if (!setting_ || ::pread(setting_.get(), before_.data(), before_.size() - 1, 0) <= 0) return;
    write("4096");
  }
  SmallConnectionTable(const SmallConnectionTable&) = delete;
  SmallConnectionTable& operator=(const SmallConnectionTable&) = delete;
  ~SmallConnectionTable() {
    if (before_[0] != 0) write(before_.data());
  }

 private:
  void write(const char* text) {
    // Without the right to set it the pod shares the node's table: only slower.
    if (setting_ && ::pwrite(setting_.get(), text, std::strlen(text), 0) < 0) setting_.reset();
  }

  Fd setting_;
  std::array<char, 32> before_{};
};

/// In a child of the zygote that ends right after: the new namespaces' parent in everything but process ancestry.
Result<Zygote::Born> give_birth(const Setup& setup, std::vector<Fd>& descriptors) {
  TRY(join(descriptors[setup_cgroup_pod].get()));
  // Offsets can be written only while nobody is in the namespace: we stay outside, our child is born inside.
  if (unshare(CLONE_NEWTIME) != 0) return fail_errno("make a time namespace");
  TRY(write_clock_offsets({setup.monotonic_offset, setup.boottime_offset}));

  int pidfd = -1;
  clone_args arguments{};
  // CLONE_PARENT: the zygote reaps it.
  arguments.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP |
                    CLONE_PIDFD | CLONE_PARENT;
  arguments.pidfd = reinterpret_cast<std::uint64_t>(&pidfd);
  // Its destructor is the parent's alone: the child never returns from `run_init`.
  std::optional<SmallConnectionTable> table(std::in_place);
  const long init = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (init != 0) table.reset();
  if (init < 0) return fail_errno("make the pod's namespaces");
  if (init == 0) run_init(setup, std::move(descriptors));
  return Zygote::Born{HostPid{static_cast<pid_t>(init)}, Fd(pidfd)};
}

void answer(int socket, const Result<Zygote::Born>& born) {
  Birth birth;
  std::vector<int> descriptors;
  if (born) {
    birth.init = born->init.value;
    descriptors.push_back(born->pidfd.get());
  } else {
    birth.what = born.error().what;
    birth.code = born.error().code;
  }
  (void)send_message(socket, image::pack(birth), descriptors);
}

void handle(int socket, Message message) {
  auto setup = image::unpack<Setup>(message.bytes);
  if (!setup || message.descriptors.size() < setup_cgroup_limits) {
    answer(socket, fail(ErrorKind::invalid, "malformed set-up of a pod"));
    return;
  }
  const pid_t midwife = fork();
  if (midwife == 0) {
    answer(socket, give_birth(*setup, message.descriptors));
    _exit(0);
  }
  int status = 0;
  if (midwife < 0)
    answer(socket, fail_errno("fork"));
  else if (waitpid(midwife, &status, 0) == midwife && status != 0)
    answer(socket, fail(ErrorKind::failed, "a process that makes namespaces ended with status {:#x}", status));
}

/// Descriptors above the standard ones that aren't in `keep`.
void close_others(int keep) {
  if (keep > 3) close_range(3, static_cast<unsigned>(keep) - 1, 0);
  close_range(static_cast<unsigned>(keep) + 1, ~0U, 0);
}

[[noreturn]] void live(Fd socket) {
  close_others(socket.get());
  prctl(PR_SET_NAME, "godwit-zygote");
  setsid();
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null >= 0) dup2(null, 0), dup2(null, 1), close(null);
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  const Fd children(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  for (;;) {
    pollfd watched[2] = {{socket.get(), POLLIN, 0}, {children.get(), POLLIN, 0}};
    if (poll(watched, 2, -1) < 0) continue;
    if (watched[1].revents != 0) {
      signalfd_siginfo ignored;
      while (::read(children.get(), &ignored, sizeof ignored) > 0) {
      }
      while (waitpid(-1, nullptr, WNOHANG) > 0) {
      }
    }
    if (watched[0].revents == 0) continue;
    auto message = receive_message(socket.get());
    if (message)
      handle(socket.get(), std::move(*message));
    else if (message.error().kind == ErrorKind::gone)
      _exit(0);  // the daemon has ended
  }
}

}  // namespace

struct Zygote::Parts {
  std::mutex mutex;
  HostPid process;
  Fd socket;
};

Zygote::Zygote(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Zygote::Zygote(Zygote&&) noexcept = default;
Zygote& Zygote::operator=(Zygote&&) noexcept = default;

Zygote::~Zygote() {
  if (!parts_) return;
  parts_->socket.reset();
  waitpid(parts_->process.value, nullptr, 0);
}

HostPid Zygote::process() const {
  return parts_->process;
}

Result<Zygote> Zygote::start() {
  auto pair = TRY(seqpacket_pair());
  const pid_t process = fork();
  if (process < 0) return fail_errno("fork the zygote");
  if (process == 0) {
    pair.ours.reset();
    live(std::move(pair.theirs));
  }
  auto parts = std::make_unique<Parts>();
  parts->process = HostPid{process};
  parts->socket = std::move(pair.ours);
  return Zygote(std::move(parts));
}

Result<Zygote::Born> Zygote::spawn(const Setup& setup, const std::vector<int>& descriptors) {
  const std::lock_guard lock(parts_->mutex);
  TRY(send_message(parts_->socket.get(), image::pack(setup), descriptors));
  auto message = TRY(receive_message(parts_->socket.get()));
  const auto birth = TRY(image::unpack<Birth>(message.bytes));
  if (!birth.what.empty()) return std::unexpected(Error{ErrorKind::failed, birth.what, birth.code, {}});
  if (message.descriptors.size() != 1) return fail(ErrorKind::failed, "the zygote gave no pidfd");
  return Born{HostPid{birth.init}, std::move(message.descriptors.front())};
}

}  // namespace godwit::pod
