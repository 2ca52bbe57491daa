#include "sim/daemon.hpp"

#include <algorithm>

#include "sim/arrival.hpp"
#include "sim/custody.hpp"
#include "sim/departure.hpp"
#include "sim/drain.hpp"
#include "sim/world.hpp"

namespace godwit::sim {

using control::Claim;
using control::Fate;

void Actor::later(control::Time time, std::function<void()> task) {
  world().events.after(machine().span(std::max(time, control::Time(0))), [alive = alive(), task = std::move(task)] {
    if (!alive.expired()) task();
  });
}

World& Actor::world() {
  return daemon_.world();
}

Machine& Actor::machine() {
  return daemon_.machine();
}

/// The user has ended a pod: first its record, then itself.
class Ending : public Actor {
 public:
  Ending(Daemon& daemon, int pod) : Actor(daemon), pod_(pod) {}

  void look() {
    ask({0, StoreAsk::What::get, {pod_name(pod_), {}, 0}, {}}, [this](const StoreAnswer& answer) {
      const auto& record = answer.record;
      if (!record || record->node != node_name(daemon_.index())) return end();
      ask({0, StoreAsk::What::remove, *record, {}}, [this](const StoreAnswer&) { look(); });
    });
  }

 private:
  void ask(StoreAsk ask, std::function<void(const StoreAnswer&)> then) {
    daemon_.store().ask(*this, std::move(ask), [this, then = std::move(then)](const StoreAnswer* answer) {
      if (answer != nullptr) return then(*answer);
      later(control::Time(1000), [this] { look(); });
    });
  }
  void end() { daemon_.forget(pod_); }

  const int pod_;
};

Daemon::Daemon(World& world, Machine& machine) : world_(world), machine_(machine), store_(*this), starter_(*this) {}
Daemon::~Daemon() = default;

int Daemon::index() const {
  return machine_.index;
}

void Daemon::send(Message message) {
  if (machine_.off) return;
  world_.network.send(std::move(message),
                      [this_machine = &machine_, boot = machine_.boot] { return this_machine->boot == boot; });
}

std::unique_ptr<Wire> Daemon::connect(int peer) {
  return std::make_unique<Wire>(*this, peer, world_.next_number());
}

void Daemon::later(std::function<void()> task) {
  world_.events.after(Us(0), [alive = std::weak_ptr<int>(alive_), task = std::move(task)] {
    if (!alive.expired()) task();
  });
}

void Daemon::over(Departure& departure) {
  later([this, copy = departure.copy] { departures_.erase(copy); });
}
void Daemon::over(Arrival& arrival) {
  later([this, number = arrival.number] { arrivals_.erase(number); });
}
void Daemon::over(Custody& custody) {
  later([this, copy = custody.copy] { custodies_.erase(copy); });
}
void Daemon::over(Serving& serving) {
  later([this, copy = serving.copy] { servings_.erase(copy); });
}
void Daemon::over(Fetching& fetching) {
  later([this, copy = fetching.copy] { fetchings_.erase(copy); });
}

void Daemon::drop_custody(std::uint64_t copy) {
  custodies_.erase(copy);
}

Custody& Daemon::keep(Copy& copy, std::function<void(Fate)> settled) {
  auto& custody = custodies_[copy.number] = std::make_unique<Custody>(*this, copy, std::move(settled));
  return *custody;
}

void Daemon::serve(Copy& copy, std::unique_ptr<Wire> wire) {
  servings_[copy.number] = std::make_unique<Serving>(*this, copy, std::move(wire));
}

void Daemon::fetch(Copy& copy, std::unique_ptr<Wire> wire) {
  fetchings_[copy.number] = std::make_unique<Fetching>(*this, copy, std::move(wire));
}

void Daemon::adopt() {
  std::vector<std::uint64_t> numbers;
  for (const auto& [number, copy] : machine_.copies()) numbers.push_back(number);
  for (const auto number : numbers) {
    Copy& copy = *machine_.copy(number);
    if (copy.state == CopyState::running) {
      if (copy.owed) fetch(copy, nullptr);
      continue;
    }
    const bool source = copy.note->facts.role == Claim::Role::source;
    if (world_.bug(Bug::adopted_unasked) || (world_.bug(Bug::noted_late) && source)) {
      machine_.run(copy);
      continue;
    }
    const auto settled = [this, number, source](Fate fate) {
      Copy* copy = machine_.copy(number);
      if (copy == nullptr) return;
      if (source && fate == Fate::there && copy->note->owes && !world_.bug(Bug::early_end))
        return serve(*copy, nullptr);
      if (source && fate == Fate::there) return machine_.destroy(*copy);
      if (copy->owed) fetch(*copy, nullptr);
    };
    keep(copy, settled).step(Claim::Doubt{});
  }
}

void Daemon::receive(const Message& message) {
  if (message.connection != 0) {
    const auto wire = wires.find(message.connection);
    return wire == wires.end() ? opened(message) : wire->second->receive(message);
  }
  std::visit(Overloaded{
                 [&](const AskRoom& ask) { starter_.asked(message.from, ask); },
                 [&](const AnswerRoom& answer) { starter_.answered(message.from, answer); },
                 [&](const control::Withdrawal& withdrawal) { starter_.withdrawn(message.from, withdrawal); },
                 [&](const StoreAnswer& answer) { store_.receive(answer); },
                 [&](const Reset& reset) {
                   if (const auto wire = wires.find(reset.connection); wire != wires.end()) wire->second->reset();
                 },
                 [&](const Needed& needed) { asked_whether_needed(message, needed); },
                 [&](const NotNeeded& word) {
                   if (const auto serving = servings_.find(word.copy); serving != servings_.end())
                     serving->second->not_needed();
                 },
                 [](const auto&) {},
             },
             message.body);
}

/// The first message of a connection, or one of a connection that isn't any more.
void Daemon::opened(const Message& message) {
  const auto* hello = std::get_if<Hello>(&message.body);
  const auto* resume = std::get_if<Resume>(&message.body);
  const auto* go = std::get_if<Go>(&message.body);
  if (go != nullptr && world_.bug(Bug::old_go)) {
    for (auto& [number, arrival] : arrivals_)
      if (arrival->pod() == go->pod) arrival->told(true);
    return;
  }
  if ((hello == nullptr && resume == nullptr) || !opened_.insert(message.connection).second) {
    if (!std::holds_alternative<Closed>(message.body)) send({index(), message.from, 0, 0, Reset{message.connection}});
    return;
  }
  auto wire = std::make_unique<Wire>(*this, message.from, message.connection);
  wire->receive(message);
  if (hello != nullptr) {
    auto arrival = std::make_unique<Arrival>(*this, std::move(wire), *hello);
    Arrival& kept = *arrival;
    arrivals_[kept.number] = std::move(arrival);
    return kept.begin();
  }
  for (const auto& [number, copy] : machine_.copies()) {
    if (!copy.note || copy.note->move != resume->move || copy.note->facts.role != Claim::Role::source) continue;
    // Not before this side knows, too; it will be asked again.
    if (const auto serving = servings_.find(number); serving != servings_.end()) serving->second->take(std::move(wire));
    return;
  }
  wire->send(Unknown{});
}

void Daemon::asked_whether_needed(const Message& message, const Needed& needed) {
  for (const auto& [number, copy] : machine_.copies())
    if (copy.note && copy.note->move == needed.move && copy.note->facts.role == Claim::Role::destination) return;
  send({index(), message.from, 0, 0, NotNeeded{needed.copy}});
}

bool Daemon::move(int pod, std::vector<std::string> candidates, bool postcopy, std::optional<control::Time> deadline) {
  Copy* copy = machine_.find(pod);
  std::erase(candidates, node_name(index()));
  if (copy == nullptr || copy->state != CopyState::running || candidates.empty()) return false;
  if (departures_.contains(copy->number) || endings_.contains(pod)) return false;
  if (copy->owed && !world_.bug(Bug::moves_on_owed)) return false;
  auto& departure = departures_[copy->number] =
      std::make_unique<Departure>(*this, *copy, Departure::Wish{std::move(candidates), postcopy, deadline});
  departure->begin();
  return true;
}

void Daemon::cancel(int pod) {
  const Copy* copy = machine_.find(pod);
  if (copy == nullptr) return;
  if (const auto found = departures_.find(copy->number); found != departures_.end()) found->second->cancel();
}

void Daemon::end_pod(int pod) {
  const Copy* copy = machine_.find(pod);
  if (copy == nullptr || copy->state != CopyState::running || departures_.contains(copy->number)) return;
  if (endings_.contains(pod)) return;
  world_.say(index(), pod, "is to be ended by its user");
  world_.ledger.ended(pod);
  auto& ending = endings_[pod] = std::make_unique<Ending>(*this, pod);
  ending->look();
}

void Daemon::forget(int pod) {
  later([this, pod] { endings_.erase(pod); });
  Copy* copy = machine_.find(pod);
  if (copy == nullptr) return;
  fetchings_.erase(copy->number);
  machine_.destroy(*copy);
}

std::string Daemon::unfinished() const {
  if (!departures_.empty()) return "a pod on its way out";
  if (!arrivals_.empty()) return "a pod on its way in";
  if (!custodies_.empty()) return "a copy in doubt";
  if (!servings_.empty()) return "pages that it owes";
  if (!fetchings_.empty()) return "pages to fetch";
  if (!starter_.idle()) return "a search";
  return {};
}

}  // namespace godwit::sim
