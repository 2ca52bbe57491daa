#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "cli/playground_parts.hpp"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

namespace godwit::cli::playground {

Result<void> enter(const State& state, const Host& host, const std::string& cgroup_leaf) {
  const Fd process = TRY(open_process(host.pid, host.start, "host " + host.name));
  TRY(join_cgroups(state, host.name, cgroup_leaf));
  constexpr int all =
      CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP | CLONE_NEWTIME;
  if (setns(process.get(), all) != 0) return fail_errno("enter host {}", host.name);
  // A service manager's or a colleague's settings are of this machine, not of that one.
  for (const char* name : {"OLDPWD", "GODWIT_SOCKET", "NOTIFY_SOCKET", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"})
    unsetenv(name);
  if (std::getenv("PATH") == nullptr) setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
  if (chdir("/") != 0) return fail_errno("enter the root of host {}", host.name);
  return {};
}

namespace {

std::vector<char*> as_argv(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const auto& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  return argv;
}

[[noreturn]] void become(const std::vector<std::string>& command) {
  const auto argv = as_argv(command);
  execvp(argv[0], argv.data());
  fmt::print(stderr, "{}: {}\n", command[0], std::strerror(errno));
  _exit(127);
}

int exit_code(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/// Ours in raw mode for as long as this lives.
class RawTerminal {
 public:
  RawTerminal() {
    tcgetattr(0, &before_);
    termios raw = before_;
    cfmakeraw(&raw);
    tcsetattr(0, TCSANOW, &raw);
  }
  ~RawTerminal() { tcsetattr(0, TCSANOW, &before_); }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios before_{};
};

int signal_pipe[2] = {-1, -1};

/// What the terminal sends goes to the whole group, the command included; what a process sends is for us alone.
bool from_terminal(const siginfo_t* info) {
  return info->si_code == SI_KERNEL;
}

void note_signal(int signal, siginfo_t* info, void*) {
  if (signal != SIGCHLD && signal != SIGWINCH && from_terminal(info)) return;
  const auto byte = static_cast<char>(signal);
  (void)!write(signal_pipe[1], &byte, 1);
}

void watch(std::initializer_list<int> signals) {
  (void)!pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK);
  struct sigaction action {};
  action.sa_sigaction = note_signal;
  action.sa_flags = SA_RESTART | SA_SIGINFO;
  for (const int signal : signals) sigaction(signal, &action, nullptr);
}

void copy_window_size(int to) {
  winsize size{};
  if (ioctl(0, TIOCGWINSZ, &size) == 0) ioctl(to, TIOCSWINSZ, &size);
}

/// True while both ends are open.
bool pass_on(int from, int to) {
  std::array<char, 4096> bytes{};
  const ssize_t size = read(from, bytes.data(), bytes.size());
  if (size <= 0) return false;
  for (ssize_t done = 0; done < size;) {
    const ssize_t n = write(to, bytes.data() + done, static_cast<std::size_t>(size - done));
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

/// Copies both ways until the other side has closed: its last process has gone.
void relay(int master) {
  copy_window_size(master);
  bool input = true;
  for (;;) {
    std::array<pollfd, 3> wait{{{.fd = master, .events = POLLIN},
                                {.fd = signal_pipe[0], .events = POLLIN},
                                {.fd = input ? 0 : -1, .events = POLLIN}}};
    if (poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) return;
    if (wait[1].revents != 0) {
      char signal = 0;
      while (read(signal_pipe[0], &signal, 1) == 1) {
        if (signal == SIGWINCH) copy_window_size(master);
        // The command is another session's child of ours: its end is the end, whoever still holds its terminal.
        if (signal == SIGCHLD) {
          pollfd rest{.fd = master, .events = POLLIN};
          while (poll(&rest, 1, 0) == 1 && (rest.revents & POLLIN) != 0 && pass_on(master, 1)) {
          }
          return;
        }
      }
    }
    if (wait[0].revents != 0 && !pass_on(master, 1)) return;
    if (wait[2].revents != 0) input = pass_on(0, master);
  }
}

/// With a terminal of the host's own: programs find it by name there, and its session begins in the host.
Result<int> run_on_terminal(const std::vector<std::string>& command) {
  const Fd master(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  std::array<char, 64> name{};
  if (!master || grantpt(master.get()) != 0 || unlockpt(master.get()) != 0 ||
      ptsname_r(master.get(), name.data(), name.size()) != 0)
    return fail_errno("open a terminal");
  const Fd slave(open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!slave) return fail_errno("open the terminal {}", name.data());
  termios settings{};
  if (tcgetattr(0, &settings) == 0) tcsetattr(slave.get(), TCSANOW, &settings);
  copy_window_size(master.get());
  watch({SIGWINCH, SIGCHLD});
  const pid_t child = fork();
  if (child < 0) return fail_errno("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    ioctl(slave.get(), TIOCSCTTY, 0);
    for (int fd = 0; fd < 3; ++fd) dup2(slave.get(), fd);
    become(command);
  }
  {
    const RawTerminal raw;
    relay(master.get());
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return exit_code(status);
}

/// With our own streams. Signals that end a command go on to it.
Result<int> run_plainly(const std::vector<std::string>& command) {
  watch({SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD});
  const pid_t child = fork();
  if (child < 0) return fail_errno("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD}) ::signal(signal, SIG_DFL);
    become(command);
  }
  for (;;) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) return exit_code(status);
    pollfd wait{.fd = signal_pipe[0], .events = POLLIN};
    poll(&wait, 1, -1);
    char signal = 0;
    while (read(signal_pipe[0], &signal, 1) == 1)
      if (signal != SIGCHLD) kill(child, signal);
  }
}

}  // namespace

Result<int> exec(const std::string& name, const std::string& host_name, const std::vector<std::string>& command) {
  const State state = TRY(load(name));
  const Host* host = state.find(host_name);
  if (host == nullptr) return fail(ErrorKind::not_found, "playground {} has no host \"{}\"", name, host_name);
  // A child enters, so that this process stays what it was.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("make a pipe");
  Fd report(ends[0]), say(ends[1]);
  const bool terminal = isatty(0) != 0 && isatty(1) != 0;
  const pid_t parent = getpid();
  const pid_t helper = fork();
  if (helper < 0) return fail_errno("fork");
  if (helper == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    const auto entered = enter(state, *host, "exec");
    Result<int> code = entered ? (terminal ? run_on_terminal(command) : run_plainly(command))
                               : Result<int>(std::unexpected(entered.error()));
    if (code) _exit(*code);
    const std::string text = code.error().message();
    (void)!write(say.get(), text.data(), text.size());
    _exit(1);
  }
  say.reset();
  // Whoever ends us means the command.
  static pid_t forward_to = 0;
  forward_to = helper;
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = [](int number, siginfo_t* info, void*) {
      if (!from_terminal(info)) kill(forward_to, number);
    };
    sigaction(signal, &action, nullptr);
  }
  int status = 0;
  while (waitpid(helper, &status, 0) < 0 && errno == EINTR) {
  }
  std::array<char, 4096> text{};
  const ssize_t size = read(report.get(), text.data(), text.size());
  if (size > 0) return fail(ErrorKind::failed, "{}", std::string(text.data(), static_cast<std::size_t>(size)));
  return exit_code(status);
}

namespace {

/// In the host: turns into the service. Says why not on `say`, which closes by itself when it works.
[[noreturn]] void become_service(const Service& service, int say) {
  const auto give_up = [say](const std::string& what) {
    const std::string text = fmt::format("{}: {}", what, std::strerror(errno));
    (void)!send(say, text.data(), text.size(), MSG_NOSIGNAL);
    _exit(127);
  };
  setsid();
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  const int log = open(service.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (log < 0 || null < 0) give_up(fmt::format("open {}", service.log));
  dup2(null, 0);
  dup2(log, 1);
  dup2(log, 2);
  const auto argv = as_argv(service.command);
  execv(argv[0], argv.data());
  give_up(fmt::format("run {}", service.command[0]));
  _exit(127);
}

/// A message, and who sent it as a number of this machine: the kernel translates it.
Result<std::string> hear_from(int channel, pid_t& sender) {
  std::array<char, 4096> text{};
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t size = recvmsg(channel, &message, 0);
  if (size < 0) return fail_errno("hear from a helper");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (size > 0 && header != nullptr && header->cmsg_type == SCM_CREDENTIALS) {
    ucred who{};
    std::memcpy(&who, CMSG_DATA(header), sizeof who);
    sender = who.pid;
  }
  return std::string(text.data(), static_cast<std::size_t>(size));
}

}  // namespace

Result<pid_t> spawn(const State& state, const Host& host, const Service& service) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("make a socket pair");
  Fd ours(ends[0]), theirs(ends[1]);
  const int on = 1;
  setsockopt(ours.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  const pid_t helper = fork();
  if (helper < 0) return fail_errno("fork");
  if (helper == 0) {
    const auto entered = enter(state, host, service.cgroup);
    if (!entered) {
      const std::string text = entered.error().message();
      (void)!send(theirs.get(), text.data(), text.size(), MSG_NOSIGNAL);
      _exit(1);
    }
    // Twice: only a child of a process that is itself in the host is inherited by the host's PID 1.
    const pid_t between = fork();
    if (between == 0) {
      if (fork() != 0) _exit(0);
      (void)!send(theirs.get(), "P", 1, MSG_NOSIGNAL);
      become_service(service, theirs.get());
    }
    waitpid(between, nullptr, 0);
    _exit(0);
  }
  theirs.reset();
  pid_t sender = 0;
  const auto first = hear_from(ours.get(), sender);
  waitpid(helper, nullptr, 0);
  if (!first) return std::unexpected(first.error());
  if (*first != "P") return fail(ErrorKind::failed, "start {} on {}: {}", service.name, host.name, *first);
  pid_t nobody = 0;
  const auto second = hear_from(ours.get(), nobody);
  if (!second) return std::unexpected(second.error());
  if (!second->empty()) return fail(ErrorKind::failed, "start {} on {}: {}", service.name, host.name, *second);
  return sender;
}

}  // namespace godwit::cli::playground
