#include "sim/machine.hpp"

#include "sim/world.hpp"

namespace godwit::sim {

Machine::Machine(World& world, int number) : index(number), world_(world) {}
Machine::~Machine() = default;

control::Time Machine::now() const {
  const double ms = static_cast<double>(world_.events.now().count()) / 1000 * rate;
  return control::Time(static_cast<std::int64_t>(ms)) + ahead;
}

Us Machine::span(control::Time time) const {
  // A millisecond more: what was to last a time has lasted it by this clock.
  return Us(static_cast<std::int64_t>(static_cast<double>(time.count() + 1) * 1000 / rate));
}

std::uint64_t Machine::used() const {
  std::uint64_t sum = 0;
  for (const auto& [number, copy] : copies_) sum += copy.memory;
  return sum;
}

Copy* Machine::copy(std::uint64_t number) {
  const auto found = copies_.find(number);
  return found == copies_.end() ? nullptr : &found->second;
}

Copy* Machine::find(int pod) {
  for (auto& [number, copy] : copies_)
    if (copy.pod == pod) return &copy;
  return nullptr;
}

Copy& Machine::build(int pod, const control::Needs& needs) {
  const auto number = world_.next_number();
  Copy& copy = copies_[number];
  copy.number = number;
  copy.pod = pod;
  copy.needs = needs;
  return copy;
}

void Machine::has(Copy& copy, std::uint64_t bytes) {
  copy.memory = bytes;
  world_.ledger.room(index);
}

void Machine::complete(Copy& copy, const State& state) {
  copy.stamp = state.stamp;
  copy.owed = state.origin != 0;
  copy.origin = state.origin;
  copy.holed = state.holed;
  world_.ledger.complete(copy, index);
}

void Machine::begin(int pod, const control::Needs& needs) {
  Copy& copy = build(pod, needs);
  has(copy, needs.memory);
  world_.ledger.born(copy, index);
  run(copy);
}

void Machine::run(Copy& copy) {
  world_.ledger.runs(copy, index);
  copy.state = CopyState::running;
  world_.say(index, copy.pod, "runs");
}

void Machine::stop(Copy& copy) {
  copy.state = CopyState::stopped;
}

void Machine::pin(Copy& copy) {
  copy.state = CopyState::pinned;
  world_.say(index, copy.pod, "stands in the freezer");
}

void Machine::destroy(Copy& copy) {
  world_.say(index, copy.pod, "what is here of it is destroyed");
  world_.ledger.destroyed(copy, index);
  copies_.erase(copy.number);
}

void Machine::start_daemon() {
  if (daemon) return;
  off = false;
  world_.say(index, -1, "a daemon begins");
  daemon = std::make_unique<Daemon>(world_, *this);
  daemon->adopt();
}

void Machine::kill_daemon() {
  if (!daemon) return;
  world_.say(index, -1, "the daemon dies");
  daemon.reset();
  std::vector<std::uint64_t> numbers;
  for (const auto& [number, copy] : copies_) numbers.push_back(number);
  for (const auto number : numbers) {
    Copy& copy = copies_.at(number);
    if (copy.state == CopyState::building)
      destroy(copy);
    else if (copy.state == CopyState::stopped)
      run(copy);
  }
}

void Machine::lose() {
  world_.say(index, -1, "the machine is lost");
  ++boot;
  off = true;
  world_.ledger.machine_lost(index, copies_);
  daemon.reset();
  copies_.clear();
}

}  // namespace godwit::sim
