#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "image/codec.hpp"
#include "pod/channel.hpp"
#include "pod/execution.hpp"
#include "pod/log_segments.hpp"
#include "pod/raised_threads.hpp"
#include "pod/spec.hpp"

/// What is said between the daemon, the zygote and a pod's init. Messages are MessagePack maps with named fields, so
/// that a newer daemon still understands the inits that an older one has left.
namespace godwit::pod {

/// What an init is made from. Daemon to zygote, with the descriptors of `SetupDescriptor`.
struct Setup {
  std::string pod;
  std::string hostname;
  std::int64_t monotonic_offset = 0;  ///< of its time namespace, nanoseconds
  std::int64_t boottime_offset = 0;
  std::string upper, work, merged;  ///< directories of the overlay
  std::string hidden;               ///< the state directory: not to be seen from inside
  bool bounded = false;             ///< root in it isn't the node's: the node's settings can be read only
  bool terminal = false;
  bool input = false;
  bool fleeting = false;  ///< ends with its first connection until it is told to keep
  MSGPACK_DEFINE_MAP(pod, hostname, monotonic_offset, boottime_offset, upper, work, merged, hidden, bounded, terminal,
                     input, fleeting)
};

/// The order of descriptors that go with a Setup.
enum SetupDescriptor : std::size_t {
  setup_control,       ///< the first connection
  setup_listener,      ///< for further ones
  setup_log,           ///< directory of the log
  setup_cgroup_pod,    ///< cgroup.procs of the pod's cgroup: root of its cgroup namespace
  setup_cgroup_init,   ///< cgroup.procs of the init's
  setup_cgroup_work,   ///< directory of the workload's
  setup_cgroup_limits  ///< and all after it: cgroup.procs in v1 hierarchies that the workload joins
};

/// Zygote to daemon, with the init's pidfd.
struct Birth {
  pid_t init = 0;
  std::string what;  ///< what went wrong; empty: nothing
  int code = 0;
  MSGPACK_DEFINE_MAP(init, what, code)
};

enum class Command : std::uint8_t {
  life = 1,      ///< -> kept, first, ended, lost, input_ended
  start,         ///< program -> pid [pidfd]: the first one
  stub,          ///< pid -> pid [pidfd]
  set_first,     ///< pid
  keep,          ///< here on the end of a connection is not the end of the init
  streams,       ///< names[0]: an execution; without: the first program -> names [their descriptors]
  deposit,       ///< names[0] [descriptor]
  withdraw,      ///< names[0] -> [descriptor]
  list,          ///< names[0]: beginning of the name -> names of deposits
  forget,        ///< names[0]
  flush,         ///< what stands in the streams is in the log, the segment is ended; and in the executions
  last_pid,      ///< -> pid
  set_last_pid,  ///< pid
  subscribe,     ///< [socket]: events go there from here on
  attach,        ///< names[0]: an execution, place [socket]: who reads it
  execute,       ///< execution, program -> pid
  signal,        ///< number, to the first program
  end,           ///< kill everything, answer, exit
  executions,    ///< -> executions, without their output
  execution,     ///< names[0] -> executions[0]
  restore,       ///< execution: it is so from here on
  close,         ///< names[0]: an execution; its streams break, its terminal hangs up
  raising,       ///< raised: what is let down when this connection ends; none: nothing
};

struct Request {
  std::uint32_t sequence = 0;
  std::uint8_t command = 0;
  std::vector<std::string> names;
  Program program;
  User user;  ///< and what it may at most be
  std::uint64_t capabilities = 0;
  pid_t pid = 0;
  int number = 0;
  std::uint64_t place = 0;
  Execution execution;
  std::vector<RaisedThread> raised;
  MSGPACK_DEFINE_MAP(sequence, command, names, program, user, capabilities, pid, number, place, execution, raised)
};

struct Response {
  std::uint32_t sequence = 0;
  int kind = -1;  ///< ErrorKind; -1: it worked
  std::string what;
  int code = 0;
  std::string hint;
  std::vector<std::string> names;
  pid_t pid = 0;
  bool kept = false;
  pid_t first = 0;     ///< 0: none
  bool ended = false;  ///< and `status` is how
  int status = 0;
  std::uint64_t lost = 0;
  bool input_ended = false;  ///< the first program's
  std::vector<Execution> executions;
  MSGPACK_DEFINE_MAP(sequence, kind, what, code, hint, names, pid, kept, first, ended, status, lost, input_ended,
                     executions)
};

/// Init to subscriber: the pod has ended. An init of an earlier version tells of other programs too, as not `last`.
struct Event {
  pid_t pid = 0;
  int status = 0;
  bool last = false;
  MSGPACK_DEFINE_MAP(pid, status, last)
};

inline Response to_response(Error error) {
  Response response;
  response.kind = static_cast<int>(error.kind);
  response.what = std::move(error.what);
  response.code = error.code;
  response.hint = std::move(error.hint);
  return response;
}

inline Error to_error(const Response& response) {
  return Error{static_cast<ErrorKind>(response.kind), response.what, response.code, response.hint};
}

}  // namespace godwit::pod
