/// How a pod begins, is taken back by a new daemon, and ends.

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.hpp"
#include "kernel/capabilities.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "pod/pod_parts.hpp"
#include "pod/zygote.hpp"

namespace godwit::pod {

namespace {

constexpr int end_limit_ms = 10'000;

Result<Fd> open_for_writing(const std::string& path) {
  Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno("open {}", path);
  return file;
}

/// A directory as the root of a mount that is attached nowhere. The init holds it inside the pod, where links in /proc
/// lead to what processes hold: from here ".." leads nowhere, and not into the node's own tree.
Result<Fd> open_detached(const std::string& path) {
  const Fd mount(static_cast<int>(
      ::syscall(SYS_open_tree, AT_FDCWD, path.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW)));
  if (!mount) return fail_errno("open {}", path);
  Fd directory(::openat(mount.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail_errno("open {}", path);
  return directory;
}

Result<Setup> setup_for(const Site& site, const Spec& spec, const Directory& directory,
                        const std::optional<Pod::Arrival>& arrival) {
  Setup setup;
  setup.pod = spec.name;
  setup.hostname = spec.hostname.empty() ? spec.name : spec.hostname;
  setup.upper = directory.upper();
  setup.work = directory.work();
  setup.merged = directory.merged();
  setup.hidden = site.state_dir;
  setup.bounded = (spec.capabilities & kernel::capability(CAP_SYS_ADMIN)) == 0;
  setup.terminal = spec.program.terminal;
  setup.input = spec.program.input;
  setup.fleeting = true;
  const auto offsets =
      arrival ? TRY(offsets_for({arrival->clocks, arrival->at})) : TRY(read_clock_offsets(HostPid{getpid()}));
  setup.monotonic_offset = offsets.monotonic;
  setup.boottime_offset = offsets.boottime;
  return setup;
}

/// Everything that the init needs from outside its root, in the order of SetupDescriptor.
Result<std::vector<Fd>> descriptors_for(const Directory& directory, const PodCgroups& cgroups, Fd control) {
  std::vector<Fd> all;
  all.push_back(std::move(control));
  all.push_back(TRY(listen_at(directory.socket())));
  all.push_back(TRY(open_detached(directory.log())));
  all.push_back(TRY(open_for_writing(cgroups.pod + "/cgroup.procs")));
  all.push_back(TRY(open_for_writing(cgroups.init() + "/cgroup.procs")));
  all.push_back(TRY(open_detached(cgroups.work())));
  for (const auto& limit : cgroups.limits) all.push_back(TRY(open_for_writing(limit + "/cgroup.procs")));
  return all;
}

/// Adds the threads of the workload's living processes. Those that the calling thread traces stay zombies until it
/// waits for them, and their pod's pid namespace with them.
void add_threads(const Cgroup& workload, std::vector<HostPid>& all) {
  const auto processes = workload.processes();
  if (!processes) return;
  for (const HostPid process : *processes)
    if (const auto threads = kernel::list_threads(process)) all.insert(all.end(), threads->begin(), threads->end());
}

bool wait_for_end(int pidfd, int limit_ms, const std::vector<HostPid>& traced) {
  for (int waited = 0; waited < limit_ms; waited += 5) {
    // Backwards: a leader ends after its threads.
    for (auto thread = traced.rbegin(); thread != traced.rend(); ++thread)
      waitpid(thread->value, nullptr, __WALL | __WNOTHREAD | WNOHANG);
    pollfd end{pidfd, POLLIN, 0};
    if (poll(&end, 1, 5) == 1) return true;
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<Pod>> Pod::create(const Site& site, const Spec& spec, const std::optional<Arrival>& arrival) {
  if (site.zygote == nullptr) return fail(ErrorKind::invalid, "no zygote to fork pods from");
  auto parts = std::make_unique<Parts>(site, spec);
  TRY(parts->directory.make(spec));
  // From here on ~Pod removes what has been made.
  std::unique_ptr<Pod> pod(new Pod(std::move(parts)));
  Parts& p = *pod->parts_;
  p.cgroups = TRY(make_cgroups(site.cgroup, site.node, spec));
  p.workload = Cgroup(p.cgroups.work(), p.cgroups.limits);

  auto control = TRY(seqpacket_pair());
  const Setup setup = TRY(setup_for(site, spec, p.directory, arrival));
  {
    const auto owned = TRY(descriptors_for(p.directory, p.cgroups, std::move(control.theirs)));
    std::vector<int> descriptors;
    for (const Fd& fd : owned) descriptors.push_back(fd.get());
    auto born = TRY(site.zygote->spawn(setup, descriptors));
    p.init = born.init;
    p.pidfd = std::move(born.pidfd);
  }
  TRY(p.use_control(std::move(control.ours)));
  TRY(p.answer_to(0));
  // The init stands in its own root and serves. Until the pod is kept it ends with our connection.
  p.namespaces = TRY(Namespaces::of(p.init));
  TRY(p.directory.write_record({spec, p.init.value, TRY(kernel::read_stat(p.init)).start_time, p.cgroups}));
  TRY(set_limits(p.cgroups, spec));
  p.port = TRY(Port::create(site.bridge, spec.id, spec.network, p.namespaces.net.get(),
                            arrival ? Gate::State::shut : Gate::State::open));
  TRY(p.subscribe());
  return pod;
}

Result<std::unique_ptr<Pod>> Pod::adopt(const Site& site, const std::string& name) {
  const Directory directory(site.state_dir, site.run_dir, name);
  const auto record = TRY(directory.read_record());
  if (!record || !Directory::alive(*record)) {
    if (access((directory.path() + "/left").c_str(), F_OK) != 0) TRY(directory.clear());
    return nullptr;
  }
  auto parts = std::make_unique<Parts>(site, record->spec);
  parts->kept = true;  // unless its init says otherwise: whatever fails here, the pod goes on
  std::unique_ptr<Pod> pod(new Pod(std::move(parts)));
  Parts& p = *pod->parts_;
  p.cgroups = record->cgroups;
  p.workload = Cgroup(p.cgroups.work(), p.cgroups.limits);
  p.init = HostPid{record->init};
  p.pidfd = TRY(kernel::pidfd_open(p.init));
  auto life = [&]() -> Result<Life> {
    TRY(p.use_control(TRY(connect_to(directory.socket()))));
    return pod->life();
  }();
  // An init that nobody has told to stay ends with its daemon: it may be about to.
  if (!life && wait_for_end(p.pidfd.get(), 2000, {})) {
    TRY(directory.clear());
    return nullptr;
  }
  p.kept = TRY(std::move(life)).kept;
  if (!p.kept) {
    TRY(pod->destroy());
    return nullptr;
  }
  p.namespaces = TRY(Namespaces::of(p.init));
  std::map<std::string, Fd> gate;
  const std::string prefix = "gate/";
  const auto kept = TRY(pod->deposits(prefix));
  for (const auto& key : kept) gate.emplace(key.substr(prefix.size()), TRY(pod->withdraw(key)));
  if (!Gate::is_whole(gate)) {
    // The daemon died between the first and the last of them: before anything depended on them, or after. With the last
    // descriptor the programs go.
    for (const auto& key : kept) TRY(pod->forget(key));
    gate.clear();
  }
  p.port = TRY(Port::adopt(record->spec.id, record->spec.network, p.namespaces.net.get(), std::move(gate)));
  TRY(p.subscribe());
  return pod;
}

Result<std::vector<std::unique_ptr<Pod>>> Pod::adopt_all(const Site& site) {
  std::vector<std::unique_ptr<Pod>> pods;
  for (const auto& name : TRY(Directory::all(site.state_dir))) {
    if (!check_name(name)) continue;
    auto pod = adopt(site, name);
    // One that can't be taken back must not keep the others from it. Nothing of it is touched.
    if (!pod)
      log::error("pod {} can't be taken back: {}", name, pod.error().message());
    else if (*pod)
      pods.push_back(std::move(*pod));
  }
  return pods;
}

Result<void> Pod::Parts::end_init(std::vector<HostPid> traced) {
  if (!pidfd) return {};
  add_threads(workload, traced);
  lift_limits(cgroups);
  (void)workload.kill();
  // It writes the last output to the log and ends. If it can't, it is killed all the same.
  Request request;
  request.command = static_cast<std::uint8_t>(Command::end);
  if (control && send_message(control.get(), image::pack(request)) && wait_for_end(pidfd.get(), 1000, traced))
    return {};
  (void)kernel::pidfd_send_signal(pidfd.get(), SIGKILL);
  if (!wait_for_end(pidfd.get(), end_limit_ms, traced))
    return fail(ErrorKind::timeout, "the init of pod {} doesn't end", spec.name);
  return {};
}

Result<void> Pod::destroy(bool keep_files, std::vector<HostPid> traced) {
  Parts& p = *parts_;
  Result<void> outcome;
  const auto note = [&](Result<void> step) {
    if (!step && outcome) outcome = std::move(step);
  };
  if (!keep_files) note(p.directory.mark_forsaken());
  if (p.port) note(p.port->gate().set(Gate::State::shut));
  const auto ended = p.end_init(std::move(traced));
  note(ended);
  // Nothing of the pod runs, or it can't be helped. Its namespaces go with our descriptors of them.
  {
    const std::lock_guard lock(p.asking);
    p.control.reset();
  }
  p.events.reset();
  if (ended) p.pidfd.reset();
  if (p.port) note(p.port->remove());
  p.port.reset();
  p.namespaces = {};
  const auto cleared = p.cgroups.pod.empty() ? Result<void>{} : remove_cgroups(p.cgroups);
  note(cleared);
  // Who still runs keeps the files that it stands on, and the next daemon the record by which it finds what is left.
  if (keep_files)
    note(p.directory.leave(p.spec.id));
  else if (ended && cleared)
    note(p.directory.remove());
  p.destroyed = outcome.has_value();
  p.kept = p.kept && !outcome;
  return outcome;
}

}  // namespace godwit::pod
