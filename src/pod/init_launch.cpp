#include "pod/init_launch.hpp"

#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

namespace godwit::pod {

namespace {

/// What a child says about itself before it execs, when it can't.
struct Failure {
  int code = 0;
  char what[120] = {};
};

[[noreturn]] void give_up(int report, std::string_view what) {
  Failure failure{errno, {}};
  std::copy_n(what.begin(), std::min(what.size(), sizeof failure.what - 1), failure.what);
  (void)!::write(report, &failure, sizeof failure);
  _exit(127);
}

/// Both sides of every launch: the limits are joined, the init's own is gone, and the signals are as in a process that
/// nobody has touched.
void settle(int report, const Workload& workload, bool block) {
  for (const Fd& procs : workload.limits)
    if (::write(procs.get(), "0", 1) != 1) give_up(report, "join the cgroup of the pod's limits");
  if (setrlimit(RLIMIT_NOFILE, &workload.descriptors) != 0) give_up(report, "limit descriptors");
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t mask;
  block ? sigfillset(&mask) : sigemptyset(&mask);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (const auto& string : strings) result.push_back(const_cast<char*>(string.c_str()));
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> with_defaults(std::vector<std::string> environment) {
  const auto has = [&](std::string_view name) {
    return std::ranges::any_of(environment, [&](const std::string& entry) { return entry.starts_with(name); });
  };
  if (!has("PATH=")) environment.emplace_back("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  if (!has("HOME=")) environment.emplace_back("HOME=/root");
  return environment;
}

/// A stream is opened again through /proc/self/fd and /dev/tty only by who may: it belongs to the program's user.
void give_streams(const std::array<int, 3>& stdio, const User& user) {
  for (const int stream : stdio) {
    struct stat status {};
    const bool ours = ::fstat(stream, &status) == 0 && (S_ISFIFO(status.st_mode) || ::isatty(stream) == 1);
    if (ours) (void)!::fchown(stream, user.uid, S_ISFIFO(status.st_mode) ? user.gid : status.st_gid);
  }
}

void take_identity(const Identity& identity, const std::array<int, 3>& stdio, int report) {
  const auto& [user, capabilities] = identity;
  if (!user.is_root()) give_streams(stdio, user);
  if (!kernel::limit_bounding(capabilities)) give_up(report, "drop capabilities");
  if (setgroups(user.groups.size(), user.groups.data()) != 0) give_up(report, "setgroups");
  if (setresgid(user.gid, user.gid, user.gid) != 0) give_up(report, "setresgid");
  // With root's number everything that it held goes.
  if (setresuid(user.uid, user.uid, user.uid) != 0) give_up(report, "setresuid");
  if (!user.is_root() && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) give_up(report, "set no_new_privs");
}

[[noreturn]] void become(const Program& program, const Identity& identity, const std::array<int, 3>& stdio,
                         const Workload& workload, int report) {
  settle(report, workload, false);
  if (setsid() < 0) give_up(report, "setsid");
  for (int number = 0; number < 3; ++number)
    if (dup2(stdio[number], number) < 0) give_up(report, "set up stdio");
  if (program.terminal && ioctl(0, TIOCSCTTY, 0) != 0) give_up(report, "take the controlling terminal");
  close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  umask(022);
  take_identity(identity, stdio, report);
  if (chdir(program.directory.c_str()) != 0) give_up(report, "chdir " + program.directory);
  const auto environment = with_defaults(program.environment);
  auto arguments = pointers(program.arguments);
  auto variables = pointers(environment);
  environ = variables.data();  // where execvp looks for PATH
  execvp(arguments[0], arguments.data());
  give_up(report, "start " + program.arguments[0]);
}

[[noreturn]] void sleep_for_ever(const Workload& workload, int builder, int report) {
  settle(report, workload, true);
  // A registered area would be written to when the address space has been emptied.
  auto* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  if (__rseq_size > 0) syscall(SYS_rseq, area, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
  if (builder >= 0) dup2(builder, 0);
  close_range(builder >= 0 ? 1 : 0, ~0U, 0);  // with it the report: we have arrived
  for (;;) syscall(SYS_pause);
}

struct Report {
  Fd read, write;
};

Result<Report> make_report() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno("make a pipe");
  return Report{Fd(ends[0]), Fd(ends[1])};
}

/// Like fork, into the workload's cgroup.
long clone_into(const Workload& workload, pid_t process, int& pidfd) {
  clone_args arguments{};
  arguments.flags = CLONE_PIDFD | CLONE_INTO_CGROUP;
  arguments.pidfd = reinterpret_cast<std::uint64_t>(&pidfd);
  arguments.exit_signal = SIGCHLD;
  arguments.cgroup = static_cast<std::uint64_t>(workload.directory.get());
  if (process != 0) {
    arguments.set_tid = reinterpret_cast<std::uint64_t>(&process);
    arguments.set_tid_size = 1;
  }
  return syscall(SYS_clone3, &arguments, sizeof arguments);
}

}  // namespace

Result<Launched> launch_program(const Program& program, const Identity& identity, const std::array<int, 3>& stdio,
                                const Workload& workload) {
  if (program.arguments.empty()) return fail(ErrorKind::invalid, "no program to start");
  auto report = TRY(make_report());
  int pidfd = -1;
  const long process = clone_into(workload, 0, pidfd);
  if (process < 0) return fail_errno("fork in the pod");
  if (process == 0) become(program, identity, stdio, workload, report.write.get());
  return Launched{static_cast<pid_t>(process), Fd(pidfd), std::move(report.read)};
}

Result<Launched> launch_stub(pid_t wanted, const Workload& workload, int builder) {
  if (wanted <= 1) return fail(ErrorKind::invalid, "no process can have pid {} in a pod", wanted);
  auto report = TRY(make_report());
  int pidfd = -1;
  const long process = clone_into(workload, wanted, pidfd);
  if (process < 0) return fail_errno("make a process with pid {} in the pod", wanted);
  if (process == 0) sleep_for_ever(workload, builder, report.write.get());
  return Launched{static_cast<pid_t>(process), Fd(pidfd), std::move(report.read)};
}

Result<void> read_outcome(const Launched& launched) {
  Failure failure;
  const ssize_t got = ::read(launched.report.get(), &failure, sizeof failure);
  if (got == 0) return {};
  if (got != sizeof failure) return fail(ErrorKind::failed, "a new process of the pod said nothing");
  failure.what[sizeof failure.what - 1] = 0;
  const auto kind = failure.code == ENOENT ? ErrorKind::not_found : ErrorKind::failed;
  return std::unexpected(Error{kind, failure.what, failure.code, {}});
}

}  // namespace godwit::pod
