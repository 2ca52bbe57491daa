#include "node/pods.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "base/random.hpp"
#include "base/remove_tree.hpp"
#include "image/codec.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "node/ended.hpp"
#include "node/interrupted.hpp"
#include "pod/directory.hpp"

namespace godwit::node {
namespace {

constexpr std::uint32_t address_attempts = 256;
constexpr int doubt_interval_ms = 1000;
constexpr int look_interval_ms = 5000;
constexpr std::chrono::seconds execution_patience{30};
constexpr std::chrono::seconds settle_patience{10};

pod::AddressPlan plan_of(const Config::Network& network) {
  return {network.subnet4, network.pods4, network.subnet6, network.gateway4, network.gateway6};
}

/// Programs expect these; what the user gave stands first and wins.
void add_defaults(pod::Program& program, const std::string& hostname, std::uint32_t uid) {
  const auto add = [&](const std::string& name, const std::string& value) {
    for (const std::string& entry : program.environment)
      if (entry.starts_with(name + "=")) return;
    program.environment.push_back(name + "=" + value);
  };
  add("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  add("HOME", uid == 0 ? "/root" : pod::home_of(uid));
  if (uid != 0) add("USER", pod::name_of(uid));
  add("HOSTNAME", hostname);
  if (program.terminal) add("TERM", "xterm");
}

/// A pidfd of the pod's first program; none when it can't be found.
Fd first_program(pod::Pod& pod) {
  const auto life = pod.life();
  const auto processes = pod.workload().processes();
  if (!life || !life->first || !processes) return {};
  for (const HostPid process : *processes) {
    const auto status = kernel::read_status(process);
    if (!status || status->ns_tgid.empty() || status->ns_tgid.back() != life->first->value) continue;
    auto fd = kernel::pidfd_open(process);
    return fd ? std::move(*fd) : Fd();
  }
  return {};
}

}  // namespace

Pods::Pods(const Links& links, pod::Site site, store::Store& store, Doubts& doubts, Remainders& remainders,
           Journal& history)
    : links_(links),
      config_(links.config()),
      site_(std::move(site)),
      store_(store),
      doubts_(doubts),
      remainders_(remainders),
      history_(history),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  watcher_ = std::thread([this] { keep_going("the watch over the pods", [this] { watch(); }); });
}

Pods::~Pods() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake();
  watcher_.join();
  leave_off();
  for (auto& thread : fetching_) thread.join();
}

void Pods::wake() {
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

std::shared_ptr<LocalPod> Pods::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto found = pods_.find(name);
  return found == pods_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<LocalPod>> Pods::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<LocalPod>> all;
  for (const auto& [name, pod] : pods_) all.push_back(pod);
  return all;
}

std::shared_ptr<LocalPod> Pods::local_of(std::shared_ptr<pod::Pod> pod, PodState state) {
  auto local = std::make_shared<LocalPod>(pod->spec(), pod->directory());
  local->pod_ = std::move(pod);
  local->view_.state = state;
  local->unclaimed_ = pod::read_word(local->directory) == true;
  // Of one that comes from elsewhere, or from an earlier daemon.
  if (const auto executions = local->pod_->executions())
    for (const auto& execution : *executions) local->executions.know(execution.id);
  return local;
}

/// From here on the watcher works on it.
void Pods::insert(const std::shared_ptr<LocalPod>& local) {
  {
    const std::lock_guard lock(mutex_);
    pods_[local->spec.name] = local;
  }
  wake();
}

Result<pod::Spec> Pods::reserve(const NewPod& wanted) {
  pod::Spec spec;
  spec.name = wanted.name;
  if (!valid_name(spec.name))
    return std::unexpected(Error{ErrorKind::invalid, fmt::format("'{}' can't be a pod's name", spec.name), 0,
                                 "lower-case letters, digits, '.' and '-', 63 at most"});
  spec.id = TRY(random_hex(16));
  spec.home = config_.node;
  spec.hostname = wanted.hostname.empty() ? spec.name : wanted.hostname;
  spec.program = wanted.program;
  spec.memory_limit = wanted.memory_limit;
  spec.cpu_limit = wanted.cpu_limit;
  spec.labels = wanted.labels;
  spec.user = wanted.user;
  spec.capabilities = wanted.capabilities;
  add_defaults(spec.program, spec.hostname, spec.user.uid);
  const bool addressed = !config_.network.bridge.empty() && !config_.network.subnet4.empty();
  for (std::uint32_t attempt = 0; attempt < address_attempts; attempt++) {
    if (addressed) spec.network = TRY(pod::candidate_network(plan_of(config_.network), spec.id, attempt));
    store::Record record{spec.name, spec.id, config_.node, 1, "", config_.node, spec.user.uid};
    if (!spec.network.addresses.empty()) {
      const std::string& first = spec.network.addresses.front();
      record.address = first.substr(0, first.find('/'));
    }
    const Result<void> created = store_.create(record);
    if (created) return spec;
    if (created.error().kind != ErrorKind::busy || !addressed) return std::unexpected(created.error());
    // Busy is the name, which another attempt doesn't cure, or the address, which it does.
    if (TRY(store_.get(spec.name))) return std::unexpected(created.error());
  }
  return fail(ErrorKind::refused, "no free address for pod {} in {}", spec.name,
              config_.network.pods4.empty() ? config_.network.subnet4 : config_.network.pods4);
}

bool Pods::expected(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return !adopted_ || arriving_ > 0 || being_made_.contains(name);
}

void Pods::expect_arrival(int change) {
  const std::lock_guard lock(mutex_);
  arriving_ += change;
}

Result<std::shared_ptr<LocalPod>> Pods::create(NewPod wanted) {
  if (wanted.name.empty()) wanted.name = "pod-" + TRY(random_hex(3));
  {
    const std::lock_guard lock(mutex_);
    being_made_.insert(wanted.name);
  }
  auto made = caught([&] { return make(wanted); });
  const std::lock_guard lock(mutex_);
  being_made_.erase(being_made_.find(wanted.name));
  return made;
}

Result<std::shared_ptr<LocalPod>> Pods::make(const NewPod& wanted) {
  const pod::Spec spec = TRY(reserve(wanted));
  const auto undo = [&](Error error) -> std::unexpected<Error> {
    const store::Record record{spec.name, spec.id, config_.node, 1, "", config_.node, spec.user.uid};
    if (const auto removed = store_.remove(record); !removed)
      log::warn("pod {}: its record could not be removed again: {}", spec.name, removed.error().message());
    return std::unexpected(std::move(error).within("run " + spec.name));
  };
  auto created = caught([&] { return pod::Pod::create(site_, spec); });
  if (!created) return undo(created.error());
  if (const auto started = (*created)->start(spec.program); !started) {
    if (const auto destroyed = (*created)->destroy(); !destroyed)
      log::warn("pod {}: {}", spec.name, destroyed.error().message());
    return undo(started.error());
  }
  log::info("pod {} runs (id {})", spec.name, spec.id);
  const auto local = local_of(std::move(*created), PodState::running);
  insert(local);
  return local;
}

Result<void> Pods::signal(LocalPod& pod, int signal) {
  {
    const std::lock_guard lock(pod.mutex_);
    if (pod.view_.state == PodState::leaving && pod.first_) return kernel::pidfd_send_signal(pod.first_.get(), signal);
  }
  return pod.with([&](pod::Pod& held) { return held.signal(signal); });
}

Result<void> Pods::stop(LocalPod& pod, std::chrono::milliseconds grace) {
  const auto over = [](const LocalPod::View& view) { return !view.here || view.state == PodState::exited; };
  if (over(pod.view())) return {};
  const auto settled = [&](Result<void> result) -> Result<void> {
    // Ended in between: that is what was asked for.
    if (!result && (over(pod.view()) && pod.view().here)) return {};
    return result;
  };
  if (grace.count() > 0) {
    TRY(settled(signal(pod, SIGTERM)));
    if (pod.wait(over, in(grace))) return {};
  }
  TRY(settled(pod.with([](pod::Pod& held) { return held.workload().kill(); })));
  TRY(pod.wait(over, in(std::chrono::seconds(10))));
  return {};
}

Result<void> Pods::remove(const std::shared_ptr<LocalPod>& pod, bool force) {
  const std::string& name = pod->spec.name;
  const auto state = pod->view().state;
  if (state != PodState::exited) {
    if (!force)
      return std::unexpected(Error{ErrorKind::refused, fmt::format("pod {} is {}", name, to_string(state)), 0,
                                   "stop it first, or use --force"});
    TRY(stop(*pod, std::chrono::milliseconds(0)));
  }
  const std::lock_guard alone(pod->use_);
  // The record first: a name that is free again while the pod's files are still there is harmless, the other way round
  // a pod would be listed that nothing is left of.
  if (const auto record = TRY(store_.get(name)); record && record->id == pod->spec.id) {
    if (record->owner != config_.node && !pod->unclaimed_)
      return fail(ErrorKind::gone, "pod {} belongs to node {}", name, record->owner);
    if (!TRY(store_.remove(*record))) return fail(ErrorKind::busy, "pod {}: its record is changing", name);
  }
  if (const auto removed = remove_tree(pod->directory); !removed)
    log::warn("pod {}: {} stays behind: {}", name, pod->directory, removed.error().message());
  departed(*pod);
  return {};
}

Result<void> Pods::remove_lost(const store::Record& record) {
  const pod::Directory directory(site_.state_dir, site_.run_dir, record.pod);
  const auto left = directory.read_record();
  if (!left)
    return std::unexpected(
        Error{ErrorKind::busy, fmt::format("whether pod {} runs can't be told: {}", record.pod, left.error().message()),
              0, fmt::format("when nothing of it runs, remove {}/record", directory.path())});
  // Its files are what it stands on.
  if (*left && pod::Directory::alive(**left))
    return std::unexpected(
        Error{ErrorKind::busy, fmt::format("pod {} runs, but this daemon hasn't taken it over", record.pod), 0,
              fmt::format("start godwitd again, its log says why; or end the pod first: kill -9 {}", (*left)->init)});
  if (!TRY(store_.remove(record))) return fail(ErrorKind::busy, "pod {}: its record is changing", record.pod);
  if (const auto removed = remove_tree(directory.path()); !removed)
    log::warn("pod {}: {} stays behind: {}", record.pod, directory.path(), removed.error().message());
  return {};
}

Result<std::shared_ptr<pod::Pod>> Pods::lend(LocalPod& pod, const std::string& destination) {
  if (!pod.wait([](const LocalPod::View& view) { return !view.here || !view.settling; }, in(settle_patience)))
    return std::unexpected(Error{ErrorKind::busy, fmt::format("pod {} has not arrived whole yet", pod.spec.name), 0,
                                 "try again when its last pages have been fetched"});
  const std::lock_guard alone(pod.use_);
  // Elsewhere nobody would know that it is by an operator's word that it was here.
  if (pod.pod_ && pod.unclaimed_ && pod.view().state == PodState::running) claim(pod);
  const LocalPod::View now = pod.view();
  if (!now.here) return fail(ErrorKind::gone, "pod {} is not on this node any more", pod.spec.name);
  if (now.state == PodState::exited) return fail(ErrorKind::refused, "pod {} has ended", pod.spec.name);
  if (now.state == PodState::leaving)
    return fail(ErrorKind::busy, "pod {} is on its way to {} already", pod.spec.name, now.destination);
  if (now.state == PodState::in_doubt) return fail(ErrorKind::busy, "pod {} is in doubt: {}", pod.spec.name, now.note);
  if (pod.unclaimed_)
    return std::unexpected(
        Error{ErrorKind::busy,
              fmt::format("pod {} is here by an operator's word, and its record doesn't say so yet", pod.spec.name), 0,
              "try again when the store answers"});
  Fd first = first_program(*pod.pod_);
  pod.change([&](LocalPod::View& view) {
    view.state = PodState::leaving;
    view.destination = destination;
    pod.first_ = std::move(first);
  });
  return pod.pod_;
}

void Pods::freezing(LocalPod& pod) {
  const std::lock_guard lock(pod.mutex_);
  pod.first_.reset();
  pod.frozen_ = true;
}

void Pods::take_back(LocalPod& pod) {
  {
    const std::lock_guard alone(pod.use_);
    pod.unclaimed_ = pod::read_word(pod.directory) == true;
  }
  pod.change([&](LocalPod::View& view) {
    if (!view.here) return;
    view.state = PodState::running;
    view.destination.clear();
    view.note.clear();
    pod.first_.reset();
  });
  // The watcher left it alone while it was lent: its program may have ended.
  wake();
}

void Pods::departed(LocalPod& pod) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = pods_.find(pod.spec.name);
    if (found != pods_.end() && found->second.get() == &pod) pods_.erase(found);
  }
  pod.change([](LocalPod::View& view) { view.here = false; });
  wake();
}

void Pods::abandon(LocalPod& pod) {
  {
    const std::lock_guard alone(pod.use_);
    if (pod.pod_) {
      if (const auto destroyed = pod.pod_->destroy(); !destroyed)
        log::error("pod {}: {}", pod.spec.name, destroyed.error().message());
      pod.pod_.reset();
    }
  }
  departed(pod);
}

void Pods::in_doubt(LocalPod& pod, const std::string& note) {
  pod.change([&](LocalPod::View& view) {
    view.state = PodState::in_doubt;
    view.note = note;
  });
  wake();
}

std::shared_ptr<LocalPod> Pods::arrived(std::shared_ptr<pod::Pod> pod) {
  log::info("pod {} has arrived", pod->spec().name);
  auto local = local_of(std::move(pod), PodState::running);
  local->view_.settling = true;
  local->announce_again_.begin();
  insert(local);
  return local;
}

void Pods::settled(LocalPod& pod) {
  pod.change([](LocalPod::View& view) {
    view.settling = false;
    if (view.state == PodState::running) view.note.clear();
  });
}

void Pods::ended(const std::shared_ptr<LocalPod>& pod, int status) {
  log::info("pod {} has ended with {}", pod->spec.name, exit_code(status));
  if (const auto written = write_ended(pod->directory, {pod->spec, status, pod->view().note}); !written)
    log::warn("pod {}: {}", pod->spec.name, written.error().message());
  // Whoever waits hears it now; whoever wants to forget the pod waits for `use_` until it is taken down.
  pod->change([&](LocalPod::View& view) {
    view.state = PodState::exited;
    view.status = status;
  });
  if (pod->pod_) {
    if (const auto destroyed = pod->pod_->destroy(true); !destroyed)
      log::warn("pod {}: {}", pod->spec.name, destroyed.error().message());
    pod->pod_.reset();
  }
}

void Pods::collect_end(const std::shared_ptr<LocalPod>& pod) {
  const std::lock_guard alone(pod->use_);
  if (!pod->pod_ || pod->view().state != PodState::running) return;
  const auto end = pod->pod_->next_end();
  // The init is gone without a word: killed from outside, or the machine is short of memory.
  if (!end) log::error("pod {}: {}", pod->spec.name, end.error().message());
  if (!end || *end) ended(pod, end ? **end : SIGKILL);
}

/// Whoever has started them is gone, and with them whoever might end them.
void Pods::end_forsaken(LocalPod& pod) {
  const auto forsaken = pod.executions.forsaken(execution_patience);
  if (forsaken.empty()) return;
  const std::lock_guard alone(pod.use_);
  if (!pod.pod_ || pod.view().state != PodState::running) return;
  for (const auto& id : forsaken) {
    log::info("pod {}: nobody reads execution {} any more: it is ended", pod.spec.name, id);
    pod.executions.forget(id);
    if (const auto closed = pod.pod_->close(id); !closed)
      log::warn("pod {}: {}", pod.spec.name, closed.error().message());
  }
}

void Pods::watch() {
  for (;;) {
    std::vector<std::shared_ptr<LocalPod>> running, doubtful;
    std::vector<pollfd> polls{{wake_.get(), POLLIN, 0}};
    {
      const std::lock_guard lock(mutex_);
      if (ending_) return;
      for (const auto& [name, pod] : pods_) {
        const auto state = pod->view().state;
        // Whose own migration is in doubt is asked for by that.
        if (state == PodState::in_doubt && pod->view().destination.empty()) doubtful.push_back(pod);
        if (state != PodState::running) continue;
        running.push_back(pod);
      }
    }
    int pause_ms = doubtful.empty() ? look_interval_ms : doubt_interval_ms;
    for (const auto& pod : running) {
      const std::lock_guard alone(pod->use_);
      if (pod->unclaimed_) pause_ms = std::min(pause_ms, doubt_interval_ms);
      pause_ms = std::min(pause_ms, pod->announce_again_.within_ms());
      const bool usable = pod->pod_ && pod->view().state == PodState::running;
      polls.push_back({usable ? pod->pod_->events_fd() : -1, POLLIN, 0});
    }
    if (::poll(polls.data(), polls.size(), pause_ms) < 0 && errno != EINTR) {
      log::error("poll: {}", std::strerror(errno));
      continue;
    }
    std::uint64_t count = 0;
    if (polls[0].revents != 0) (void)!::read(wake_.get(), &count, sizeof count);
    for (std::size_t i = 0; i < running.size(); i++)
      if (polls[i + 1].revents != 0) collect_end(running[i]);
    for (const auto& pod : doubtful) settle(pod);
    for (const auto& pod : running) {
      const std::lock_guard alone(pod->use_);
      if (!pod->pod_ || pod->view().state != PodState::running) continue;
      if (pod->announce_again_.due()) (void)pod->pod_->announce();
      if (pod->unclaimed_) claim(*pod);
    }
    for (const auto& pod : running) end_forsaken(*pod);
  }
}

}  // namespace godwit::node
