#include <fcntl.h>

#include <filesystem>

#include "base/log.hpp"
#include "migrate/recover.hpp"
#include "node/ended.hpp"
#include "node/pods.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t ended_limit = MiB;

/// Undoes what an interrupted migration has left in a pod that is ours, and lets it go on.
void recover(pod::Pod& pod) {
  const auto journal = migrate::read_journal(pod);
  if (!journal) log::error("pod {}: {}", pod.spec().name, journal.error().message());
  const bool interrupted = journal && *journal;
  if (interrupted) migrate::recover_frozen(pod, **journal);
  if (const auto thawed = pod.workload().thaw(); !thawed)
    log::error("pod {}: {}", pod.spec().name, thawed.error().message());
  if (interrupted) migrate::recover_running(pod, **journal);
}

}  // namespace

Result<void> write_ended(const std::string& directory, const Ended& ended) {
  const std::string path = directory + "/ended";
  const std::string temporary = path + ".new";
  {
    const Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd) return fail_errno("write {}", temporary);
    const Bytes bytes = image::pack(ended);
    if (::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      return fail_errno("write {}", temporary);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail_errno("rename {}", temporary);
  return {};
}

Result<std::optional<Ended>> read_ended(const std::string& directory) {
  const std::string path = directory + "/ended";
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return std::nullopt;
  if (!fd) return fail_errno("read {}", path);
  Bytes bytes(ended_limit);
  const ssize_t size = ::read(fd.get(), bytes.data(), bytes.size());
  if (size < 0) return fail_errno("read {}", path);
  bytes.resize(static_cast<std::size_t>(size));
  return TRY(image::unpack<Ended>(bytes));
}

Result<void> Pods::adopt() {
  auto found = TRY(pod::Pod::adopt_all(site_));
  for (auto& pod : found) adopt_one(std::move(pod));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(site_.state_dir + "/pods", error)) {
    if (entry.is_directory(error) && !find(entry.path().filename())) adopt_ended(entry.path());
  }
  return {};
}

void Pods::adopt_one(std::unique_ptr<pod::Pod> pod) {
  const std::string name = pod->spec().name;
  const auto life = pod->life();
  if (!life) log::warn("pod {}: {}", name, life.error().message());
  const auto frozen = pod->workload().frozen();
  // A frozen pod was in a migration, and the store says whose it is now. A running one is ours, whatever the store's
  // health: nothing runs elsewhere before it has been frozen here.
  const bool doubtful = !frozen || *frozen;
  // One that runs is told at once; what it was raised for is over.
  if (!doubtful) recover(*pod);
  const std::string note = "the store has not been asked yet";
  const auto local = insert(std::move(pod), doubtful ? PodState::in_doubt : PodState::running, note);
  settle(local);
  if (local->view().here) log::info("pod {} taken over: {}", name, to_string(local->view().state));
}

/// Asks the store whose the pod is, and acts on it.
void Pods::settle(const std::shared_ptr<LocalPod>& pod) {
  const std::string& name = pod->spec.name;
  const auto record = store_.get(name);
  if (!record) {
    const std::string& why = record.error().message();
    if (pod->view().note != why) log::warn("pod {} is {}: {}", name, to_string(pod->view().state), why);
    pod->change([&](LocalPod::View& view) { view.note = why; });
    return;
  }
  const std::lock_guard alone(pod->use_);
  if (!pod->pod_) return;
  const bool ours = *record && (*record)->id == pod->spec.id && (*record)->owner == config_.node;
  if (!ours) {
    log::warn("pod {} belongs to {}: what is left of it here is destroyed", name,
              *record ? "node " + (*record)->owner : "nobody any more");
    if (const auto destroyed = pod->pod_->destroy(); !destroyed)
      log::error("pod {}: {}", name, destroyed.error().message());
    departed(*pod);
    return;
  }
  if (pod->view().state == PodState::in_doubt) {
    // Ours by the store's word: nobody else may run it, so it goes on here.
    if (const auto opened = pod->pod_->gate().set(pod::Gate::State::open); !opened)
      log::error("pod {}: {}", name, opened.error().message());
    recover(*pod->pod_);
    if (const auto announced = pod->pod_->announce(); !announced)
      log::warn("pod {}: {}", name, announced.error().message());
    log::info("pod {} is ours and goes on", name);
    pod->change([](LocalPod::View& view) {
      view.state = PodState::running;
      view.destination.clear();
    });
  }
  pod->change([](LocalPod::View& view) { view.note.clear(); });
  wake();
}

void Pods::adopt_ended(const std::string& directory) {
  const auto ended = read_ended(directory);
  if (!ended) log::warn("{}", ended.error().message());
  if (!ended || !*ended) return;
  auto local = std::make_shared<LocalPod>((*ended)->spec, directory);
  local->view_.state = PodState::exited;
  local->view_.status = (*ended)->status;
  const std::lock_guard lock(mutex_);
  pods_.emplace(local->spec.name, std::move(local));
}

}  // namespace godwit::node
