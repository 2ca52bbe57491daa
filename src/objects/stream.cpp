#include <asm/termbits.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <set>
#include <sstream>

#include "kernel/procfs.hpp"
#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/pipe.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

/// A session whose controlling terminal this is, and that reaches it by a descriptor.
struct Session {
  PodPid leader;
  int number = -1;    ///< of the leader's descriptor
  PodPid foreground;  ///< process group; 0: none
  MSGPACK_DEFINE_MAP(leader, number, foreground)
};

struct State {
  std::string name;
  int flags = 0;
  PipeContent content;  ///< of the input, with its first description
  bool terminal = false;
  std::vector<std::uint8_t> settings;  ///< struct termios2
  std::uint16_t rows = 0, columns = 0, width = 0, height = 0;
  std::vector<Session> sessions;
  std::uint32_t uid = 0, gid = 0;  ///< whose it is: who may open it again
  MSGPACK_DEFINE_MAP(name, flags, content, terminal, settings, rows, columns, width, height, sessions, uid, gid)
};

bool is_terminal(const Descriptor& descriptor) {
  return S_ISCHR(descriptor.status.st_mode) && ::isatty(descriptor.fd) == 1;
}

bool matches(const Descriptor& descriptor) {
  if (descriptor.stream.empty() || (descriptor.flags & O_PATH) != 0) return false;
  // A pod without input has /dev/null there, which is a device like any other.
  return S_ISFIFO(descriptor.status.st_mode) || is_terminal(descriptor);
}

/// Session, terminal and foreground group of a process (fields 6 to 8 of /proc/PID/stat, behind the name).
struct Job {
  pid_t session = 0;
  unsigned terminal = 0;
  pid_t foreground = 0;
};
Result<Job> job_of(HostPid process) {
  const std::string text = TRY(kernel::read_file(process, "stat"));
  const std::size_t name = text.rfind(')');
  if (name == std::string::npos) return fail(ErrorKind::failed, "/proc/{}/stat has no name", process.value);
  std::istringstream fields(text.substr(name + 1));
  std::string state;
  pid_t parent = 0, group = 0;
  Job job;
  int terminal = 0;
  fields >> state >> parent >> group >> job.session >> terminal >> job.foreground;
  job.terminal = static_cast<unsigned>(terminal);
  return job;
}

/// tty_nr of /proc/PID/stat (new_encode_dev) is what TIOCGDEV gives.
Result<void> capture_terminal(const Descriptor& descriptor, Source& source, State& state) {
  state.terminal = true;
  struct termios2 settings {};
  struct winsize size {};
  unsigned device = 0;
  if (::ioctl(descriptor.fd, TCGETS2, &settings) < 0 || ::ioctl(descriptor.fd, TIOCGWINSZ, &size) < 0 ||
      ::ioctl(descriptor.fd, TIOCGDEV, &device) < 0)
    return fail_errno("settings of {}", descriptor.link);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&settings);
  state.settings.assign(bytes, bytes + sizeof settings);
  state.rows = size.ws_row;
  state.columns = size.ws_col;
  state.width = size.ws_xpixel;
  state.height = size.ws_ypixel;
  for (const auto& holder : descriptor.holders) {
    const auto process = source.host_pid(holder.process);
    if (!process) continue;
    const auto job = TRY(job_of(*process));
    if (job.session != process->value || job.terminal != device) continue;
    Session session{.leader = holder.process, .number = holder.number};
    if (job.foreground > 0) session.foreground = source.pod_pid(HostPid{job.foreground}).value_or(PodPid{});
    state.sessions.push_back(session);
  }
  return {};
}

struct Captured {
  std::set<std::string> names;
};

Result<State> capture(const Descriptor& descriptor, Source& source) {
  State state{.name = descriptor.stream, .flags = descriptor.flags};
  state.uid = descriptor.status.st_uid;
  state.gid = descriptor.status.st_gid;
  if (is_terminal(descriptor)) {
    TRY(capture_terminal(descriptor, source, state));
    return state;
  }
  // What stands in an output is the init's to write out; what stands in the input has not been read by the pod.
  const bool readable = (descriptor.flags & O_ACCMODE) != O_WRONLY;
  if (state.name.ends_with("stdin") && readable && source.shared<Captured>("streams").names.insert(state.name).second)
    state.content = TRY(peek_pipe(descriptor.fd, false));
  return state;
}

struct Given {
  std::set<std::string> names;
};

/// What the program got from the init is the very description that the init holds (pipe2's own, without the O_LARGEFILE
/// that open(2) adds). What the program has opened again is one of its own.
Result<Fd> open_stream(const State& state, int stream, Destination& destination) {
  const int flags = ::fcntl(stream, F_GETFL);
  if (flags < 0) return fail_errno("F_GETFL of the stream {}", state.name);
  constexpr int kind = O_ACCMODE | O_LARGEFILE;
  if (state.terminal || (flags & kind) != (state.flags & kind) ||
      !destination.shared<Given>("streams").names.insert(state.name).second)
    return reopen(stream, open_flags(state.flags));
  Fd fd{::fcntl(stream, F_DUPFD_CLOEXEC, 0)};
  if (!fd) return fail_errno("duplicate the stream {}", state.name);
  return fd;
}

Result<Fd> build(const State& state, Destination& destination) {
  const Fd stream = TRY(destination.stream(state.name));
  if (::fchown(stream.get(), state.uid, state.gid) < 0) return fail_errno("give the stream {} to its user", state.name);
  if (!state.content.chunks.empty()) {
    const Fd writer = TRY(reopen(stream.get(), O_WRONLY));
    TRY(fill_pipe(writer.get(), state.content));
  }
  Fd fd = TRY(open_stream(state, stream.get(), destination));
  if (state.terminal) {
    if (state.settings.size() != sizeof(struct termios2))
      return fail(ErrorKind::invalid, "terminal settings of {} bytes", state.settings.size());
    const struct winsize size {
      .ws_row = state.rows, .ws_col = state.columns, .ws_xpixel = state.width, .ws_ypixel = state.height
    };
    if (::ioctl(fd.get(), TCSETS2, state.settings.data()) < 0 || ::ioctl(fd.get(), TIOCSWINSZ, &size) < 0)
      return fail_errno("set the terminal");
  }
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

/// A controlling terminal is acquired by the session's leader itself.
Result<void> attach(const State& state, const Holder& holder, kernel::Batch& batch, Destination&) {
  for (const auto& session : state.sessions) {
    if (session.leader != holder.process || session.number != holder.number) continue;
    const auto number = static_cast<std::uint64_t>(holder.number);
    // Another description of the same terminal may have brought it already: then this is nothing, and no error.
    batch.must("take the controlling terminal", SYS_ioctl, {number, TIOCSCTTY, 0});
    if (session.foreground.value > 0)
      batch.must("set the foreground process group", SYS_ioctl,
                 {number, TIOCSPGRP, batch.value(session.foreground.value)});
  }
  return {};
}

}  // namespace

const Kind stream_kind{.name = "stream",
                       .matches = matches,
                       .preflight = nothing_to_preflight,
                       .capture = captures<State, capture>,
                       .build = builds<State, build>,
                       .attach = attaches<State, attach>,
                       .open = nothing_to_open};

}  // namespace godwit::objects
