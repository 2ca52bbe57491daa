#include "node/remainders.hpp"

#include "base/caught.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "migrate/channel.hpp"
#include "migrate/recover.hpp"
#include "node/ended.hpp"
#include "pod/directory.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds look_interval{2};
constexpr std::chrono::seconds answer_time{5};

/// A pod on this node that is in the middle of this move, by what stands in its directory: whatever daemon wrote it.
/// One whose program has ended is in none any more, its directory is kept for its exit code.
std::optional<migrate::Journal> journal_of(const std::string& state_dir, const std::string& move, bool arriving) {
  for (const auto& name : pod::Directory::all(state_dir).value_or(std::vector<std::string>())) {
    const std::string directory = state_dir + "/pods/" + name;
    auto journal = migrate::read_journal(directory);
    if (!journal || !*journal || (*journal)->move != move || (*journal)->arriving != arriving) continue;
    if (const auto ended = read_ended(directory); ended && *ended) continue;
    return std::move(**journal);
  }
  return {};
}

}  // namespace

Remainders::Remainders(const Links& links, store::Store& store, std::string state_dir)
    : links_(links), store_(store), state_dir_(std::move(state_dir)) {
  watcher_ = std::thread([this] { keep_going("what pods have left here", [this] { watch(); }); });
}

Remainders::~Remainders() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  watcher_.join();
}

std::vector<Remainders::View> Remainders::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<View> views;
  for (const auto& [move, entry] : entries_) {
    views.push_back(entry->view);
    views.back().asked = entry->serving > 0;
  }
  return views;
}

void Remainders::add(std::shared_ptr<pod::Pod> pod, const std::string& move, const std::string& destination) {
  const auto entry = std::make_shared<Entry>();
  entry->view = {pod->spec().name, move, destination, std::chrono::system_clock::now(), false};
  entry->pod = pod;
  if (const auto memory = memory_of(*entry); !memory)
    log::error("pod {}: {}", entry->view.pod, memory.error().message());
  if (const auto journal = migrate::read_journal(pod->directory()); journal && *journal)
    entry->epoch = (*journal)->record.epoch;
  log::warn("pod {} runs on {}: what it has left here stays until it has been fetched", entry->view.pod, destination);
  const std::lock_guard lock(mutex_);
  entries_[move] = entry;
}

std::shared_ptr<Remainders::Entry> Remainders::find(const std::string& move) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(move);
  return found == entries_.end() ? nullptr : found->second;
}

/// Opened as soon as it can be.
Result<std::shared_ptr<const migrate::Remainder>> Remainders::memory_of(Entry& entry) {
  const std::lock_guard lock(mutex_);
  if (entry.over) return fail(ErrorKind::gone, "pod {} has been given up here", entry.view.pod);
  if (!entry.memory) entry.memory = TRY(migrate::Remainder::of(*entry.pod));
  return entry.memory;
}

void Remainders::serve(Stream& connection, const std::string& peer, const std::string& move) {
  const auto say = [&](migrate::PagesLeft word) {
    const auto byte = static_cast<std::uint8_t>(word);
    return migrate::send_all(connection, &byte, sizeof byte);
  };
  const auto entry = find(move);
  if (!entry) {
    const auto journal = journal_of(state_dir_, move, false);
    (void)say(journal && journal->peer == peer ? migrate::PagesLeft::later : migrate::PagesLeft::lost);
    return;
  }
  if (entry->view.destination != peer)
    return log::warn("{} asks for pages of pod {}, which went to {}", peer, entry->view.pod, entry->view.destination);
  const auto memory = memory_of(*entry);
  if (!memory) {
    (void)say(memory.error().kind == ErrorKind::gone ? migrate::PagesLeft::lost : migrate::PagesLeft::later);
    return;
  }
  if (!say(migrate::PagesLeft::here)) return;
  migrate::notice_silence(connection.fd());
  {
    const std::lock_guard lock(mutex_);
    entry->serving++;
  }
  fault::reach("remainder.serving");
  const auto drained = (*memory)->serve(connection);
  {
    const std::lock_guard lock(mutex_);
    entry->serving--;
  }
  if (!drained || !*drained) return;
  fault::reach("remainder.drained");
  end(entry);
  const migrate::PageHeader word{.kind = migrate::PageHeader::drained};
  (void)migrate::send_all(connection, &word, sizeof word);
}

void Remainders::serve_question(Stream& connection, const std::string& peer, const std::string& move) const {
  const auto journal = journal_of(state_dir_, move, true);
  const std::uint8_t owed = journal && journal->peer == peer ? 1 : 0;
  (void)migrate::send_all(connection, &owed, sizeof owed);
}

void Remainders::end(const std::shared_ptr<Entry>& entry) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(entry->over, true)) return;
  }
  if (const auto destroyed = entry->pod->destroy(); !destroyed)
    log::error("pod {}: what can't be taken down stays for the next daemon: {}", entry->view.pod,
               destroyed.error().message());
  else
    log::info("pod {}: nothing of it is left here", entry->view.pod);
  const std::lock_guard lock(mutex_);
  entries_.erase(entry->view.move);
}

Result<void> Remainders::drop(const std::string& pod) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [move, candidate] : entries_)
      if (candidate->view.pod == pod) entry = candidate;
  }
  if (!entry) return fail(ErrorKind::not_found, "pod {} has left nothing on this node", pod);
  log::warn("pod {}: an operator gives up what it has left here", pod);
  end(entry);
  return {};
}

/// Whether the destination may still come for it.
bool Remainders::needed(const Entry& entry) const {
  if (const auto record = store_.get(entry.view.pod)) {
    // Ended and removed.
    if (!*record || (*record)->id != entry.pod->spec().id) return false;
    // Moved on, which it only does when it has all. A record that is what it was before the move tells nothing: the pod
    // is there by an operator's word, and the record has yet to be told.
    const std::string& owner = (*record)->owner;
    const bool third = owner != entry.view.destination && owner != links_.config().node;
    if (third && entry.epoch && (*record)->epoch > *entry.epoch) return false;
  }
  auto connection = links_.connect(entry.view.destination, std::string(service::owed) + entry.view.move, answer_time);
  std::uint8_t owed = 1;
  if (!connection || !migrate::receive_all(*connection, &owed, sizeof owed, answer_time)) return true;
  return owed != 0;
}

void Remainders::watch() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait_for(lock, look_interval, [this] { return stopping_; });
    if (stopping_) return;
    std::vector<std::shared_ptr<Entry>> idle;
    for (const auto& [move, entry] : entries_)
      if (entry->serving == 0) idle.push_back(entry);
    lock.unlock();
    for (const auto& entry : idle)
      if (!needed(*entry)) end(entry);
    lock.lock();
  }
}

}  // namespace godwit::node
