#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "pod/clocks.hpp"
#include "pod/execution.hpp"
#include "pod/gate.hpp"
#include "pod/log_segments.hpp"
#include "pod/namespaces.hpp"
#include "pod/raised_threads.hpp"
#include "pod/spec.hpp"

namespace godwit::pod {

class Zygote;

/// What a node gives its pods. From the daemon's config, the same for all of them.
struct Site {
  std::string node;       ///< this node's name
  std::string state_dir;  ///< /var/lib/godwit: must not lie on an overlay; a pod's own is state_dir/pods/NAME
  std::string run_dir;    ///< /run/godwit: sockets
  std::string bridge;     ///< device that pods' network ports are enslaved to; empty: pods have only loopback
  std::string cgroup;     ///< our own directory in the cgroup v2 hierarchy; a pod gets pods/NAME/{init,work} below it
  Zygote* zygote = nullptr;  ///< forks the inits; started first thing in main, outlives every pod. Not needed to adopt
};

/// The pod's cgroup (v2) that the workload runs in; its init runs beside it and is never frozen.
class Cgroup {
 public:
  [[nodiscard]] const std::string& path() const { return path_; }
  /// cgroup.freeze, and waits until cgroup.events says frozen (threads that are ptrace-stopped count as frozen).
  /// `timeout` after ten seconds, thawed again.
  Result<void> freeze();
  Result<void> thaw();
  [[nodiscard]] Result<bool> frozen() const;
  /// All processes (thread group leaders) in it. Zombies are in it too.
  [[nodiscard]] Result<std::vector<HostPid>> processes() const;
  /// Also into the directories of the limits, where those are v1.
  Result<void> add(HostPid process);
  Result<void> kill();  ///< cgroup.kill
  /// `limits`: directories in v1 hierarchies that the workload is in as well.
  explicit Cgroup(std::string path = {}, std::vector<std::string> limits = {})
      : path_(std::move(path)), limits_(std::move(limits)) {}

 private:
  std::string path_;
  std::vector<std::string> limits_;
};

/// A process just made by the pod's init that waits to be turned into one that is arriving: it sleeps for ever until it
/// is seized.
struct Stub {
  HostPid process;
};

/// A program just started. `process` is 0 when it has ended already.
struct Started {
  HostPid process;
  PodPid pid;
};

/// What the pod's init knows.
struct Life {
  bool kept = false;
  std::optional<PodPid> first;    ///< none before it was started
  std::optional<int> ended;       ///< wait status of the first program; nothing of the pod runs any more
  std::uint64_t lost_output = 0;  ///< bytes that the log couldn't take (disk full)
  bool input_ended = false;       ///< the first program's
};

class Port;

/// One pod on this node, whatever its stage: namespaces, root, network port, cgroup, and the init that keeps them.
/// Not thread-safe; the owner serialises (the daemon hands a pod to one migration thread at a time).
class Pod {
 public:
  /// How a pod comes to be here.
  struct Arrival {
    Clocks clocks;        ///< as they shall read at `at`
    std::int64_t at = 0;  ///< this host's CLOCK_MONOTONIC at which `clocks` is meant (nanoseconds)
  };

  /// A new pod, its init running, its program not yet. With `arrival` it is one that comes from elsewhere: the gate
  /// holds, and its init ends with everything in it when our connection to it closes before `keep()`.
  static Result<std::unique_ptr<Pod>> create(const Site&, const Spec&, const std::optional<Arrival>& = {});
  /// The pods whose inits outlived an earlier daemon, taken back by state_dir and their control sockets.
  static Result<std::vector<std::unique_ptr<Pod>>> adopt_all(const Site&);

  [[nodiscard]] const Spec& spec() const;
  [[nodiscard]] HostPid init() const;
  [[nodiscard]] const Namespaces& namespaces() const;
  [[nodiscard]] Gate& gate();
  [[nodiscard]] Cgroup& workload();
  [[nodiscard]] std::string upper() const;      ///< directory of the pod's own writes
  [[nodiscard]] std::string directory() const;  ///< state_dir/pods/NAME

  /// Starts the pod's first program, as a child of its init, in the workload cgroup. The pod lives as long as it, and
  /// is kept from here on. What exec says comes back: "start nginx: No such file or directory".
  Result<Started> start(const Program&);
  /// Starts another one beside it, with streams of its own; `id`: see is_execution.
  Result<Started> execute(const std::string& id, const Program&);
  /// Without their output.
  Result<std::vector<Execution>> executions();
  /// With it; `not_found`.
  Result<Execution> execution(const std::string& id);
  /// Makes it what it was elsewhere; its process is rebuilt like any other.
  Result<void> restore(const Execution&);
  /// Joins a reader, a stream socket with frames both ways, to an execution's streams: its output from `place` on
  /// (bytes of frames), an exit frame last; what the reader says that it has (FrameKind::delivered) is forgotten.
  /// `invalid` when that place has been forgotten.
  Result<void> attach(const std::string& execution, std::uint64_t place, int reader);
  /// Forgets an execution. When its program still runs, its terminal hangs up and its pipes break.
  Result<void> close(const std::string& execution);
  /// A child of the init with exactly this pid inside the pod, in the workload cgroup, in a session of the init's; for
  /// rebuilding. Its only descriptor is 0: the deposit named "builder", if there is one.
  Result<Stub> stub(PodPid);
  /// Which process's end is the pod's end (after rebuilding).
  Result<void> set_first(PodPid);
  /// The pod is ours now: from here on its init survives us.
  Result<void> keep();
  [[nodiscard]] Result<Life> life();
  /// Sends a signal to the first program.
  Result<void> signal(int signal);
  /// The pod's ends of the first program's streams: "stdin", "stdout", "stderr", or "terminal"; of an execution's with
  /// its id in front: "ID/stdout". For telling them apart by inode, and for rebuilding. The init's own ends can be
  /// withdrawn: "stdin-writer" (gone when the input has ended), "terminal-master"; "ID/stdin-writer".
  Result<std::map<std::string, Fd>> streams(const std::string& execution = {});
  /// Leaves a descriptor with the init, which outlives us; and gets a duplicate of it back.
  Result<void> deposit(const std::string& name, int fd);
  Result<Fd> withdraw(const std::string& name);
  Result<void> forget(const std::string& name);
  /// Names of all whose name begins so.
  Result<std::vector<std::string>> deposits(const std::string& prefix);
  /// Threads that are about to be raised: should we die, the init lets them down. None: they are what they were again.
  /// `invalid` when the init is an earlier version's, which doesn't know how.
  Result<void> raising(std::vector<RaisedThread>);
  /// Asks the init to take all that stands in the streams now, and to end the current log segment.
  Result<void> flush();
  [[nodiscard]] std::string log_directory() const;  ///< of segments, see log_segments.hpp
  /// Last pid given out in the pod's pid namespace (ns_last_pid).
  Result<PodPid> last_pid();
  Result<void> set_last_pid(PodPid);
  /// The pod's clocks, and this host's CLOCK_MONOTONIC at that instant: what an Arrival elsewhere is made from.
  [[nodiscard]] Result<ClockReading> clocks() const;

  /// Readable when `next_end` has something.
  [[nodiscard]] int events_fd() const;
  /// How the first program has ended, as waitpid gives it: the pod has ended with it, and its output is in the log. It
  /// is told again to every daemon that adopts the pod. `gone` when the init itself has died.
  Result<std::optional<int>> next_end();

  /// Leaves the gate with the init, so that its state outlives us; an adopted pod gets it back.
  Result<void> deposit_gate();
  Result<void> forget_gate();
  /// Lets the bridge forward for it. Until then one that arrives is silent whatever becomes of its gate.
  Result<void> connect();
  /// Tells the neighbours where the pod is now: gratuitous ARP and unsolicited neighbour advertisement, from inside the
  /// pod, with a socket that was opened at creation.
  Result<void> announce();
  [[nodiscard]] const Port& port() const;

  /// Kills what runs and leaves nothing: processes, mounts, devices, cgroups. With `keep_files`, the upper layer and
  /// log stay. Threads of it that the calling thread traces are reaped, and none may be traced by another: those of
  /// living processes are found, `traced` are others that may have died already. `timeout` when the init doesn't end.
  Result<void> destroy(bool keep_files = false, std::vector<HostPid> traced = {});

  ~Pod();  ///< lets go of the handles; a kept pod goes on, any other is destroyed

 private:
  struct Parts;
  static Result<std::unique_ptr<Pod>> adopt(const Site&, const std::string& name);
  explicit Pod(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
