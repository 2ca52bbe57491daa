#include "sim/world.hpp"

#include <cstdlib>

namespace godwit::sim {
namespace {

/// By then everything has ended, by the time limits there are.
constexpr Us time_to_end = std::chrono::seconds(300);

}  // namespace

std::string node_name(int node) {
  return "n" + std::to_string(node);
}

std::string pod_name(int pod) {
  return "p" + std::to_string(pod);
}

int number(const std::string& name) {
  return static_cast<int>(std::strtol(name.c_str() + 1, nullptr, 10));
}

World::World(const Setup& setup)
    : random(setup.seed), weather(Weather::draw(random)), network(*this), store(*this), ledger(*this), setup_(setup) {
  const int nodes = setup.nodes != 0 ? setup.nodes : random.between(3, 10);
  for (int i = 0; i < nodes; ++i) machines_.push_back(std::make_unique<Machine>(*this, i));
}

void World::deliver(const Message& message) {
  if (message.to == size()) return store.receive(message);
  Machine& to = machine(message.to);
  if (to.daemon) return to.daemon->receive(message);
  // The kernel of a machine without a daemon says that nobody is there.
  if (!to.off && message.connection != 0)
    network.send({message.to, message.from, 0, 0, Reset{message.connection}}, [] { return true; });
}

Outcome World::run() {
  Outcome outcome;
  try {
    populate();
    for (auto& machine : machines_) machine->start_daemon();
    fail_now_and_then();
    users_want();
    events.after(setup_.time, [this] { heal(); });
    while (events.step())
      if (events.now() > setup_.time + time_to_end) {
        ledger.at_end();
        throw Violation{"unfinished", -1, "it goes on for ever"};
      }
    ledger.at_end();
  } catch (Violation& violation) {
    outcome.violation = std::move(violation);
  }
  outcome.events = events.done();
  outcome.nodes = size();
  outcome.time = events.now();
  outcome.faults = faults;
  outcome.moves = moves;
  outcome.trace = std::move(trace_);
  return outcome;
}

}  // namespace godwit::sim
