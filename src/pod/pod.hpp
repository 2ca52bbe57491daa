#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "pod/gate.hpp"
#include "pod/namespaces.hpp"
#include "pod/spec.hpp"

namespace godwit::pod {

/// What a node gives its pods. From the daemon's config, the same for all of them.
struct Site {
  std::string node;       ///< this node's name
  std::string state_dir;  ///< /var/lib/godwit: must not lie on an overlay; a pod's own is state_dir/pods/NAME
  std::string run_dir;    ///< /run/godwit: sockets
  std::string bridge;     ///< device that pods' network ports are enslaved to; empty: pods have only loopback
  std::string cgroup;     ///< our own directory in the cgroup v2 hierarchy; a pod gets pods/NAME/{init,work} below it
};

/// The pod's cgroup (v2) that the workload runs in; its init runs beside it and is never frozen.
class Cgroup {
 public:
  [[nodiscard]] const std::string& path() const { return path_; }
  /// cgroup.freeze, and waits until cgroup.events says frozen (thread that are ptrace-stopped count as frozen).
  Result<void> freeze();
  Result<void> thaw();
  [[nodiscard]] Result<bool> frozen() const;
  /// All processes (thread group leaders) in it. Zombies are in it too.
  [[nodiscard]] Result<std::vector<HostPid>> processes() const;
  Result<void> add(HostPid process);
  Result<void> kill();  ///< cgroup.kill
  explicit Cgroup(std::string path = {}) : path_(std::move(path)) {}

 private:
  std::string path_;
};

/// A process just made by the pod's init that waits to be turned into one that is arriving: it sleeps for ever until it
/// is seized.
struct Stub {
  HostPid process;
};

/// A program of the pod has ended, or all of it.
struct Exit {
  PodPid process;
  int status = 0;     ///< as waitpid gives it
  bool last = false;  ///< it was the pod's first program: the pod ends with it
};

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

  /// Starts a program in the pod as a child of its init, in the workload cgroup. `first`: the pod lives as long as it.
  Result<HostPid> start(const Program&, bool first);
  /// A child of the init with exactly this pid inside the pod, in the workload cgroup, in a session of the init's; for
  /// rebuilding.
  Result<Stub> stub(PodPid);
  /// Which process's end is the pod's end (after rebuilding).
  Result<void> set_first(PodPid);
  /// The pod is ours now: from here on its init survives us.
  Result<void> keep();
  /// The pod's ends of its streams: "stdin", "stdout", "stderr", or "terminal". For telling them apart by inode, and
  /// for rebuilding.
  Result<std::map<std::string, Fd>> streams();
  /// Leaves a descriptor with the init, which outlives us; and gets a duplicate of it back.
  Result<void> deposit(const std::string& name, int fd);
  Result<Fd> withdraw(const std::string& name);
  Result<void> forget(const std::string& name);
  /// Asks the init to write out all that stands in the stream pipes now, and to end the current log segment.
  Result<void> flush_log();
  /// Last pid given out in the pod's pid namespace (ns_last_pid).
  Result<PodPid> last_pid();
  Result<void> set_last_pid(PodPid);

  /// Readable when `next_exit` has something.
  [[nodiscard]] int events_fd() const;
  Result<std::optional<Exit>> next_exit();

  /// Tells the neighbours where the pod is now: gratuitous ARP and unsolicited neighbour advertisement, from inside the
  /// pod, with a socket that was opened at creation.
  Result<void> announce();

  /// Kills what runs and leaves nothing: processes, mounts, devices, cgroups. With `keep_files`, the upper layer and
  /// log stay.
  Result<void> destroy(bool keep_files = false);

  ~Pod();  ///< lets go of the handles; a kept pod goes on

 private:
  struct Parts;
  explicit Pod(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
