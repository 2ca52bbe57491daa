#include <fcntl.h>

#include <filesystem>

#include "base/fault.hpp"
#include "base/log.hpp"
#include "migrate/recover.hpp"
#include "node/ended.hpp"
#include "node/interrupted.hpp"
#include "node/journal.hpp"
#include "node/pods.hpp"
#include "pod/directory.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t ended_limit = MiB;

/// Undoes what an interrupted migration has left in a pod that is ours, and lets it go on. True when nothing is left
/// to be undone.
bool recover(pod::Pod& pod, const std::optional<migrate::Journal>& journal) {
  if (journal) migrate::recover_frozen(pod, *journal);
  if (const auto thawed = pod.workload().thaw(); !thawed)
    log::error("pod {}: {}", pod.spec().name, thawed.error().message());
  return !journal || migrate::recover_running(pod, *journal);
}

std::optional<migrate::Journal> journal_of(const pod::Pod& pod) {
  auto journal = migrate::read_journal(pod.directory());
  if (!journal) log::error("pod {}: {}", pod.spec().name, journal.error().message());
  return journal ? std::move(*journal) : std::nullopt;
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
  for (const auto& name : TRY(pod::Directory::all(site_.state_dir))) {
    const std::string directory = site_.state_dir + "/pods/" + name;
    std::error_code error;
    if (std::filesystem::is_directory(directory, error) && !find(name)) adopt_ended(directory);
  }
  adopted_ = true;
  return {};
}

void Pods::adopt_one(std::unique_ptr<pod::Pod> pod) {
  const std::string name = pod->spec().name;
  const auto life = pod->life();
  if (!life) log::warn("pod {}: {}", name, life.error().message());
  auto journal = journal_of(*pod);
  const auto frozen = pod->workload().frozen();
  // A frozen pod was in a migration, and the store says whose it is now. A running one is ours, whatever the store's
  // health: nothing runs elsewhere before it has been frozen here.
  const bool doubtful = !frozen || *frozen;
  const auto local = local_of(std::move(pod), doubtful ? PodState::in_doubt : PodState::running);
  if (doubtful) local->view_.note = "the store has not been asked yet";
  {
    // The watcher is to find it with all that is known of it.
    const std::lock_guard alone(local->use_);
    insert(local);
    if (doubtful && journal) {
      control::Claim claim(
          {.role = journal->arriving ? control::Claim::Role::destination : control::Claim::Role::source,
           .node = config_.node,
           .peer = journal->peer,
           .before = migrate::owner_of(journal->record)});
      auto doubt = doubts_.doubt(name, local->directory, journal->peer, journal->arriving);
      local->interrupted_ =
          std::make_unique<Interrupted>(std::move(*journal), std::move(claim), std::move(doubt), false);
    } else if (journal) {
      note_interrupted(*local, *journal, control::Fate::here);
      go_on(local, journal);
    }
  }
  settle(local);
  if (local->view().here) log::info("pod {} taken over: {}", name, to_string(local->view().state));
}

/// What becomes of a frozen copy; nothing as long as the store doesn't say.
std::optional<control::Fate> Pods::fate_of(LocalPod& pod) {
  // An operator has decided, an earlier daemon has obeyed or was about to, and the record may say otherwise still.
  if (const auto here = pod::read_word(pod.directory)) return *here ? control::Fate::here : control::Fate::there;
  if (!pod.interrupted_) {
    // Frozen, and nobody has written down why: no more can be told than whose it is.
    const auto record = store_.get(pod.spec.name);
    if (!record) return {};
    const bool ours = *record && (*record)->id == pod.spec.id && (*record)->owner == config_.node;
    return ours ? control::Fate::here : control::Fate::gone;
  }
  Interrupted& interrupted = *pod.interrupted_;
  const control::Claim::Event first =
      std::exchange(interrupted.asked, true) ? control::Claim::Event(control::Claim::Tick{}) : control::Claim::Doubt{};
  return migrate::carry_out(interrupted.claim, first, interrupted.journal.record, store_,
                            [&](control::Time) -> std::optional<control::Claim::Event> {
                              auto event = interrupted.doubt->wait(control::Time(0));
                              if (event && std::holds_alternative<control::Claim::Tick>(*event)) return {};
                              return event;
                            });
}

/// What the source's daemon would have told the history of this move, had it lived.
void Pods::note_interrupted(const LocalPod& pod, const migrate::Journal& journal, control::Fate fate) {
  if (journal.arriving) return;
  const auto became = [&] {
    switch (fate) {
      case control::Fate::here:
        return "the pod has stayed";
      case control::Fate::there:
        return "the pod has moved";
      case control::Fate::gone:
        return "the pod is neither node's any more";
    }
    return "";
  };
  migrate::Report report;
  report.pod = pod.spec.name;
  report.source = config_.node;
  report.destination = journal.peer;
  report.strategy = report.asked = journal.strategy;
  report.moved = fate == control::Fate::there;
  report.error = fmt::format("the daemon of node {} ended under way; {}", config_.node, became());
  report.fate = fate;
  history_.add({.id = journal.move,
                .began = std::chrono::system_clock::time_point(std::chrono::milliseconds(journal.began_ms)),
                .user = pod.spec.user.uid,
                .outcome = Journal::Outcome::interrupted,
                .report = std::move(report)});
}

/// A pod of ours that an earlier daemon had in a migration: whatever was done to it for that is undone. With `use_`.
void Pods::go_on(const std::shared_ptr<LocalPod>& pod, const std::optional<migrate::Journal>& journal) {
  pod::Pod& held = *pod->pod_;
  const std::string& name = pod->spec.name;
  std::unique_ptr<migrate::Pager> pager;
  std::string lost;
  if (journal && journal->arriving) {
    // Before it runs: what it touches may have to be fetched.
    auto adopted = migrate::Pager::adopt(held);
    if (adopted) pager = std::move(*adopted);
    const auto begun = pager ? pager->begin() : Result<void>{};
    if (!adopted || !begun)
      lost = "what it is owed can't be served any more: " + (adopted ? begun.error() : adopted.error()).message();
  }
  if (!lost.empty()) {
    log::error("pod {}: {}: it ends", name, lost);
    if (const auto killed = held.workload().kill(); !killed) log::error("pod {}: {}", name, killed.error().message());
  }
  if (const auto opened = held.gate().release(); !opened) log::error("pod {}: {}", name, opened.error().message());
  (void)held.forget_gate();
  const bool clean = recover(held, journal);
  if (const auto connected = held.connect(); !connected) log::error("pod {}: {}", name, connected.error().message());
  pod->announce_again_.begin();
  if (const auto announced = held.announce(); !announced) log::warn("pod {}: {}", name, announced.error().message());
  pod->change([&](LocalPod::View& view) {
    view.state = PodState::running;
    view.destination.clear();
    view.note = lost;
    view.settling = pager != nullptr && lost.empty();
  });
  if (pager && lost.empty())
    fetch_rest(pod, std::move(pager), *journal);
  else if (clean)
    migrate::remove_journal(held);
}

/// Finds out whose the pod is, and acts on it.
void Pods::settle(const std::shared_ptr<LocalPod>& pod) {
  const std::string& name = pod->spec.name;
  const std::lock_guard alone(pod->use_);
  if (!pod->pod_) return;
  if (pod->view().state != PodState::in_doubt) return claim(*pod);
  const auto fate = fate_of(*pod);
  if (!fate) {
    pod->change([&](LocalPod::View& view) { view.note = "the store can't be asked whose it is"; });
    return;
  }
  fault::reach("adopt.decided");
  const auto interrupted = std::move(pod->interrupted_);
  const auto journal = interrupted ? std::optional(interrupted->journal) : std::nullopt;
  if (journal) note_interrupted(*pod, *journal, *fate);
  if (*fate == control::Fate::here) {
    log::info("pod {} is ours and goes on", name);
    pod->unclaimed_ = pod::read_word(pod->directory) == true;
    go_on(pod, journal);
    return wake();
  }
  (void)pod->pod_->gate().set(pod::Gate::State::shut);
  if (*fate == control::Fate::there && journal && !journal->arriving) {
    remainders_.add(std::move(pod->pod_), journal->move, journal->peer);
  } else {
    log::warn("pod {} is not ours: what is left of it here is destroyed", name);
    if (const auto destroyed = pod->pod_->destroy(); !destroyed)
      log::error("pod {}: {}", name, destroyed.error().message());
  }
  pod->pod_.reset();
  departed(*pod);
}

/// Holds a running pod against its record. With `use_`.
void Pods::claim(LocalPod& pod) {
  const std::string& name = pod.spec.name;
  const auto record = store_.get(name);
  if (!record) {
    const std::string& why = record.error().message();
    if (pod.view().note != why) log::warn("pod {} runs, but the store can't be asked: {}", name, why);
    pod.change([&](LocalPod::View& view) { view.note = why; });
    return;
  }
  const bool known = *record && (*record)->id == pod.spec.id;
  const bool ours = known && (*record)->owner == config_.node;
  if (!ours && !(known && pod.unclaimed_)) {
    log::warn("pod {} belongs to {}: what is left of it here is destroyed", name,
              *record ? "node " + (*record)->owner : "nobody any more");
    if (const auto destroyed = pod.pod_->destroy(); !destroyed)
      log::error("pod {}: {}", name, destroyed.error().message());
    pod.pod_.reset();
    return departed(pod);
  }
  if (pod.unclaimed_) {
    // Also where it says so already: a commit whose answer nobody waits for any more may be on its way, and fails at
    // the next epoch. Not where pages are owed: then that commit has been carried out, and the source goes by its
    // epoch.
    const auto moved = ours && pod.view().settling ? Result<bool>(true) : store_.move(**record, config_.node);
    if (!moved || !*moved) return;
    if (!ours) log::warn("pod {}: its record said {}; by an operator's word it is ours", name, (*record)->owner);
    // From here on it goes by its record like any other.
    const auto forgotten = pod::forget_word(pod.directory);
    if (!forgotten) log::error("pod {}: {}", name, forgotten.error().message());
    pod.unclaimed_ = !forgotten;
  }
  pod.change([](LocalPod::View& view) { view.note.clear(); });
}

void Pods::adopt_ended(const std::string& directory) {
  const auto ended = read_ended(directory);
  if (!ended) log::warn("{}", ended.error().message());
  if (!ended || !*ended) return;
  auto local = std::make_shared<LocalPod>((*ended)->spec, directory);
  local->view_.state = PodState::exited;
  local->view_.status = (*ended)->status;
  local->view_.note = (*ended)->note;
  local->unclaimed_ = pod::read_word(directory) == true;
  const std::lock_guard lock(mutex_);
  pods_.emplace(local->spec.name, std::move(local));
}

}  // namespace godwit::node
