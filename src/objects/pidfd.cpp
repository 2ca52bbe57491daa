#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

constexpr int thread_flag = O_EXCL;  // PIDFD_THREAD, since Linux 6.9

struct State {
  PodPid process;
  bool thread = false;
  int flags = 0;
  MSGPACK_DEFINE_MAP(process, thread, flags)
};

bool matches(const Descriptor& descriptor) {
  return is_anonymous(descriptor.link, "[pidfd]");
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  const std::string info = TRY(read_info(descriptor.fd));
  const auto field = info_field(info, "Pid");
  pid_t pid = 0;
  if (!field || std::from_chars(field->data(), field->data() + field->size(), pid).ec != std::errc{})
    return fail(ErrorKind::refused, "fdinfo of a pidfd has no Pid");
  if (pid == -1) return fail(ErrorKind::refused, "a pidfd of a process that has ended and been waited for");
  // 0: the process isn't visible from the daemon's own pid namespace.
  const auto process = pid > 0 ? source.pod_pid(HostPid{pid}) : std::nullopt;
  if (!process) return fail(ErrorKind::refused, "a pidfd of process {} outside the pod", pid);
  return State{.process = *process, .thread = (descriptor.flags & thread_flag) != 0, .flags = descriptor.flags};
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  TRY(capture(descriptor, source));
  return {};
}

Result<Fd> build(const State& state, Destination& destination) {
  const auto process = destination.host_pid(state.process);
  if (!process) return fail(ErrorKind::invalid, "a pidfd of process {}, not in the pod", state.process.value);
  Fd fd{static_cast<int>(::syscall(SYS_pidfd_open, process->value, state.thread ? thread_flag : 0))};
  if (!fd) return fail_errno("pidfd_open {}", process->value);
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

}  // namespace

const Kind pidfd_kind{.name = "pidfd",
                      .matches = matches,
                      .preflight = preflight,
                      .capture = captures<State, capture>,
                      .build = builds<State, build>,
                      .attach = nothing_to_attach,
                      .open = nothing_to_open};

}  // namespace godwit::objects
