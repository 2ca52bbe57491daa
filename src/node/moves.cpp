#include "node/moves.hpp"

#include <poll.h>

#include <cstdlib>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "base/random.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds connect_time{5};
constexpr std::size_t incoming_limit = 16;
constexpr std::size_t queue_limit = 64;

/// True from the commit on: the pod is the destination's, and this node only serves what is owed.
bool committed(const std::string& phase) {
  return phase == "restart" || phase == "drain" || phase == "done";
}

}  // namespace

/// The connections of one arriving migration that wait for being taken.
struct Moves::Incoming {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Stream> waiting;

  Result<Stream> next(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, limit, [this] { return !waiting.empty(); }))
      return fail(ErrorKind::unreachable, "the source opened no further connection in time");
    Stream connection = std::move(waiting.front());
    waiting.pop_front();
    return connection;
  }
};

Move::Move(std::string number, std::shared_ptr<LocalPod> local, std::string to, migrate::Options chosen,
           std::optional<Deadline> end)
    : id(std::move(number)), pod(std::move(local)), wanted(std::move(to)), options(std::move(chosen)), deadline(end) {}

Move::View Move::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

Move::View Move::next(std::uint64_t after, Deadline deadline) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, std::min(deadline, in(std::chrono::hours(24))),
                      [&] { return view_.number > after || view_.over; });
  return view_;
}

bool Move::cancel() {
  const std::lock_guard lock(mutex_);
  if (!committing_) cancelled_ = true;
  return !committing_;
}

bool Move::commits() {
  const std::lock_guard lock(mutex_);
  committing_ = !cancelled_;
  return committing_;
}

void Move::change(const std::function<void(View&)>& edit) {
  const std::lock_guard lock(mutex_);
  edit(view_);
  view_.number++;
  changed_.notify_all();
}

Moves::Moves(const Links& links, Starter& starter, Pods& pods, store::Store& store, Doubts& doubts,
             Remainders& remainders, Journal& journal, pod::Site site)
    : links_(links),
      starter_(starter),
      pods_(pods),
      store_(store),
      doubts_(doubts),
      remainders_(remainders),
      journal_(journal),
      site_(std::move(site)) {}

Result<std::shared_ptr<Move>> Moves::begin(const std::shared_ptr<LocalPod>& pod, const std::string& destination,
                                           const migrate::Options& options, std::optional<Deadline> deadline) {
  if (destination == site_.node)
    return fail(ErrorKind::refused, "pod {} is on node {} already", pod->spec.name, destination);
  auto candidates = TRY(starter_.candidates(destination));
  auto id = TRY(random_hex(8));
  auto held = TRY(pods_.lend(*pod, destination));
  const std::lock_guard lock(mutex_);
  collect();
  if (stopping_) {
    pods_.take_back(*pod);
    return fail(ErrorKind::refused, "this daemon is about to end");
  }
  const std::shared_ptr<Move> move(new Move(std::move(id), pod, destination, options, deadline));
  move->view_.progress.phase = "negotiate";
  try {
    move->thread_ = std::thread([this, move, held = std::move(held), candidates = std::move(candidates)]() mutable {
      const auto done = caught([&]() -> Result<void> {
        send(move, held, candidates);
        return {};
      });
      if (!done) {
        log::error("pod {}: {}", move->pod->spec.name, done.error().message());
        move->change([&](Move::View& view) { view.error = done.error(); });
      }
      // The last handle goes before anybody hears that it is over.
      held.reset();
      if (const auto end = move->view(); !move->options.dry_run)
        journal_.add({move->id, move->began, move->pod->spec.user.uid, Journal::outcome_of(end.error), end.report});
      const std::lock_guard over(mutex_);
      move->change([](Move::View& view) { view.over = true; });
      ended_.notify_all();
    });
  } catch (const std::system_error& problem) {
    pods_.take_back(*pod);
    return fail(ErrorKind::failed, "no thread for the migration: {}", problem.what());
  }
  outgoing_[move->id] = move;
  return move;
}

Result<std::string> Moves::agree(const Move& move, pod::Pod& pod, const std::vector<std::string>& candidates,
                                 const Refused& refused) {
  const auto record = TRY(store_.get(pod.spec().name));
  return starter_.agree({.move = move.id,
                         .pod = pod.spec().name,
                         .pod_id = pod.spec().id,
                         .epoch = record ? record->epoch : 0,
                         .needs = needs_of(pod),
                         .candidates = candidates,
                         .refused = refused,
                         .probe = move.options.dry_run,
                         .deadline = move.deadline,
                         .cancelled = move.cancelled_});
}

void Moves::send(const std::shared_ptr<Move>& move, const std::shared_ptr<pod::Pod>& pod,
                 const std::vector<std::string>& candidates) {
  Refused refused;
  for (;;) {
    const auto agreed = caught([&] { return agree(*move, *pod, candidates, refused); });
    if (!agreed) return nobody_takes(move, agreed.error());
    auto refusal = send_to(*agreed, move, pod, candidates.size() > 1);
    if (!refusal) return;
    refused.emplace_back(*agreed, std::move(*refusal));
  }
}

void Moves::nobody_takes(const std::shared_ptr<Move>& move, const Error& why) {
  const std::string& pod = move->pod->spec.name;
  move->change([&](Move::View& view) {
    view.report.pod = pod;
    view.report.source = site_.node;
    view.report.destination = move->wanted;
    view.report.strategy = view.report.asked = move->options.strategy;
    view.report.error = why.message();
    if (move->options.dry_run && why.kind == ErrorKind::refused)
      view.report.refusals = {why.message()};
    else
      view.error = why;
  });
  if (!move->options.dry_run) log::warn("pod {} to {}: {}", pod, move->wanted, why.message());
  pods_.take_back(*move->pod);
}

/// The whole migration. With `others`, where the pod may go as well: the destination's refusal, when it has looked
/// closer, and nothing has begun.
std::optional<control::Refusal> Moves::send_to(const std::string& destination, const std::shared_ptr<Move>& move,
                                               const std::shared_ptr<pod::Pod>& pod, bool others) {
  move->change([&](Move::View& view) { view.destination = destination; });
  const std::string service = std::string(service::migration) + move->id;
  bool connected = false;
  const auto connect = [&]() -> Result<Stream> {
    connected = true;
    Stream stream = TRY(links_.connect(destination, service, connect_time));
    // Whatever was said in its name: a pod goes only where the authority's word for its labels is.
    if (const auto labels = Links::labels(stream))
      if (const auto missing = control::missing_labels(*labels, pod->spec().labels); !missing.empty())
        return fail(ErrorKind::refused, "the certificate of node {} hasn't the label {}", destination,
                    fmt::join(missing, ", "));
    return stream;
  };
  bool gone = false, begun = false;
  const auto progress = [&](const migrate::Progress& now) {
    // Runs in the freeze as well: what is new is one lock and a wake-up.
    begun = begun || now.phase != "negotiate";
    if (now.phase == "freeze") pods_.freezing(*move->pod);
    move->change([&](Move::View& view) { view.progress = now; });
    if (gone || !committed(now.phase) || move->options.dry_run) return;
    if (now.phase == "restart") return;
    gone = true;
    pods_.departed(*move->pod);
  };
  std::uint64_t speed = 0;
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = link_speeds_.find(destination); known != link_speeds_.end()) speed = known->second;
  }
  const auto doubt = doubts_.doubt(pod->spec().name, pod->directory(), destination, false);
  const auto in_doubt = [&](control::Time pause) {
    pods_.in_doubt(*move->pod, fmt::format("the store doesn't say whether it is on {}", destination));
    return doubt->wait(pause);
  };
  const migrate::SourceSite site{.move = move->id,
                                 .node = site_.node,
                                 .destination = destination,
                                 .began = move->began,
                                 .store = store_,
                                 .cancelled = move->cancelled_,
                                 .commits = [&] { return move->commits(); },
                                 .progress = progress,
                                 .in_doubt = in_doubt,
                                 .deadline = move->deadline,
                                 .link_bytes_per_second = speed};
  migrate::Report report;
  const Result<migrate::Report> result = migrate::send(*pod, move->options, connect, site, report);
  if (others && connected && !begun && !result && result.error().kind == ErrorKind::refused) {
    log::info("{}; the others are asked", result.error().message());
    move->change([](Move::View& view) { view.destination.clear(); });
    return control::Refusal{control::Reason::hello, result.error().message()};
  }
  // Refused by our own preflight: nobody there waits for it to begin.
  if (!connected && !move->options.dry_run) starter_.withdraw(destination, move->id);
  move->change([&](Move::View& view) {
    view.report = result ? *result : report;
    if (!result) {
      view.error = result.error();
      if (view.report.error.empty()) view.report.error = result.error().message();
    }
  });
  if (result) remember_speed(destination, *result);
  if (!result) log::warn("pod {} to {}: {}", pod->spec().name, destination, result.error().message());
  conclude(*move, pod, result ? *result : report);
  return {};
}

/// The largest round tells what the link gave: small ones are all overhead.
void Moves::remember_speed(const std::string& destination, const migrate::Report& report) {
  migrate::Round largest;
  for (const auto& round : report.rounds)
    if (round.bytes > largest.bytes) largest = round;
  if (largest.bytes < 8 * MiB || largest.us == 0) return;
  const std::lock_guard lock(mutex_);
  link_speeds_[destination] = largest.bytes * 1'000'000 / largest.us;
}

/// The pod's place after a migration.
void Moves::conclude(Move& move, std::shared_ptr<pod::Pod> held, const migrate::Report& report) {
  LocalPod& pod = *move.pod;
  if (move.options.dry_run) return pods_.take_back(pod);
  // Left for the next daemon, who asks again.
  if (!report.fate) return pods_.departed(pod);
  switch (*report.fate) {
    case control::Fate::here:
      return pods_.take_back(pod);
    case control::Fate::there:
      if (report.moved && report.error.empty())
        log::info("pod {} moved to {} ({}): frozen {} us, {} us in all, {} bytes", pod.spec.name, report.destination,
                  report.strategy, report.freeze_us, report.total_us, report.bytes_sent);
      if (report.owing) remainders_.add(std::move(held), move.id, report.destination);
      return report.owing || report.error.empty() ? pods_.departed(pod) : pods_.abandon(pod);
    case control::Fate::gone:
      return pods_.abandon(pod);
  }
}

Result<void> Moves::cancel(const std::string& pod) {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, move] : outgoing_) {
    if (move->pod->spec.name != pod || move->view().over) continue;
    if (!move->cancel())
      return fail(ErrorKind::refused, "pod {} is about to be {}'s: what is committed isn't called off", pod,
                  move->view().destination);
    return {};
  }
  return fail(ErrorKind::not_found, "pod {} is in no migration", pod);
}

void Moves::incoming(Stream connection, const Sender& sender, const std::string& id) {
  const std::string& peer = sender.name;
  const std::string key = peer + "/" + id;
  std::shared_ptr<Incoming> mine;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    const auto found = incoming_.find(key);
    if (found != incoming_.end()) {
      const std::lock_guard queue(found->second->mutex);
      if (found->second->waiting.size() >= queue_limit) return;
      found->second->waiting.push_back(std::move(connection));
      found->second->changed.notify_one();
      return;
    }
    if (incoming_.size() >= incoming_limit) {
      log::warn("migration {} from {}: too many at a time", id, peer);
      return;
    }
    mine = std::make_shared<Incoming>();
    incoming_[key] = mine;
  }
  pods_.expect_arrival(1);
  std::shared_ptr<LocalPod> arrived;
  std::shared_ptr<Doubts::Doubt> doubt;
  std::string name;
  const migrate::DestinationSite site{
      .move = id,
      .peer = peer,
      .site = site_,
      .store = store_,
      .decide =
          [&](const pod::Spec& spec, const control::Needs& needs) {
            name = spec.name;
            return starter_.decide(id, sender, spec, needs);
          },
      .arrived =
          [&](std::shared_ptr<pod::Pod> pod) {
            arrived = pods_.arrived(std::move(pod));
            pods_.expect_arrival(-1);
          },
      .use =
          [&](const std::function<void(pod::Pod&)>& work) {
            (void)arrived->with([&](pod::Pod& pod) -> Result<void> {
              work(pod);
              return {};
            });
          },
      .in_doubt =
          [&](control::Time pause) {
            if (!doubt) doubt = doubts_.doubt(name, site_.state_dir + "/pods/" + name, peer, true);
            return doubt->wait(pause);
          },
      .source = [&] { return pods_.source(peer, id, name); },
      .lost = [&](const std::string& why) { pods_.lose(*arrived, why); },
      .received = [&](std::uint64_t bytes) { starter_.used(id, sender, bytes); },
  };
  const auto result = caught([&] {
    return migrate::receive(
        std::move(connection), [&](std::chrono::milliseconds limit) { return mine->next(limit); }, site);
  });
  starter_.end(id, sender);
  if (!result) log::warn("migration {} from {}: {}", id, peer, result.error().message());
  // Nothing is owed any more, or never will be paid: either way nobody else works on the pod now.
  if (arrived) pods_.settled(*arrived);
  if (!arrived) pods_.expect_arrival(-1);
  const std::lock_guard lock(mutex_);
  incoming_.erase(key);
  ended_.notify_all();
}

void Moves::collect() {
  std::erase_if(outgoing_, [](const auto& entry) {
    const std::shared_ptr<Move>& move = entry.second;
    if (!move->view().over) return false;
    if (move->thread_.joinable()) move->thread_.join();
    return true;
  });
}

void Moves::stop(std::chrono::seconds patience) {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  for (const auto& [id, move] : outgoing_) (void)move->cancel();
  doubts_.stop();
  const auto over = [this] {
    for (const auto& [id, move] : outgoing_)
      if (!move->view().over) return false;
    return true;
  };
  if (!ended_.wait_for(lock, patience, over)) {
    log::error("a migration is not over after {} s: the next daemon goes on with it", patience.count());
    // Its thread uses everything that would be taken down now.
    std::_Exit(EXIT_SUCCESS);
  }
  for (const auto& [id, move] : outgoing_)
    if (move->thread_.joinable()) move->thread_.join();
  outgoing_.clear();
}

}  // namespace godwit::node
