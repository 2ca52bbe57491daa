#include "sim/ledger.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "sim/world.hpp"

namespace godwit::sim {

void Ledger::broken(std::string invariant, int pod, std::string text) {
  throw Violation{std::move(invariant), pod, std::move(text)};
}

bool Ledger::excused(int pod, const Pod& truth) const {
  if (truth.ended || truth.excused) return true;
  const auto* record = world_.store.record(pod_name(pod));
  return record == nullptr || truth.lost.contains(number(record->node));
}

void Ledger::born(Copy& copy, int machine) {
  copy.stamp = pods_[copy.pod].latest = 1;
  complete(copy, machine);
}

void Ledger::complete(Copy& copy, int machine) {
  pods_.at(copy.pod).copies.push_back({&copy, machine});
}

void Ledger::runs(Copy& copy, int machine) {
  Pod& pod = pods_.at(copy.pod);
  for (const auto& other : pod.copies)
    if (other.copy->state == CopyState::running)
      broken("two running", copy.pod,
             fmt::format("it runs on {} and on {}", node_name(other.machine), node_name(machine)));
  if (copy.stamp != pod.latest)
    broken("stale", copy.pod, fmt::format("what runs on {} is older than what has run elsewhere", node_name(machine)));
  const auto& hardware = world_.machine(machine).hardware;
  std::set<std::string> here(hardware.cpu_flags.begin(), hardware.cpu_flags.end());
  here.insert("vdso " + hardware.vdso);
  for (const auto& thing : pod.seen)
    if (!here.contains(thing))
      broken("machine", copy.pod, fmt::format("it has run with {}, and runs on {} without", thing, node_name(machine)));
  pod.seen = std::move(here);
  if (copy.holed)
    broken("holes", copy.pod, fmt::format("it runs on {} without pages that stayed elsewhere", node_name(machine)));
  copy.stamp = ++pod.latest;
  pod.lost.clear();
  if (!copy.owed) pod.excused = false;
}

void Ledger::destroyed(const Copy& copy, int machine) {
  Pod& pod = pods_.at(copy.pod);
  std::erase_if(pod.copies, [&](const Whole& whole) { return whole.copy == &copy; });
  if (copy.stamp == 0) return;
  bool left = false;
  for (const auto& [other, at] : pod.copies) {
    const bool current = other->stamp == pod.latest;
    left |= current;
    if (current && other->owed && other->origin == copy.number && !pod.ended)
      broken("needed", copy.pod,
             fmt::format("{} destroys what {} is still owed pages of", node_name(machine), node_name(at)));
  }
  if (copy.stamp == pod.latest && !left && !excused(copy.pod, pod))
    broken("vanished", copy.pod, fmt::format("{} destroys the last copy", node_name(machine)));
}

void Ledger::machine_lost(int machine, const std::map<std::uint64_t, Copy>& copies) {
  for (const auto& [id, copy] : copies) {
    Pod& pod = pods_.at(copy.pod);
    const auto* record = world_.store.record(pod_name(copy.pod));
    if (record != nullptr && number(record->node) == machine) pod.excused = true;
    if (copy.state == CopyState::pinned && copy.stamp != 0) pod.lost.insert(machine);
    for (const Whole& whole : pod.copies)
      if (whole.copy->owed && whole.copy->origin == copy.number) pod.excused = true;
    std::erase_if(pod.copies, [&](const Whole& whole) { return whole.copy == &copy; });
  }
}

void Ledger::recorded(const control::Owner& before, const control::Owner& after) const {
  if (after.epoch <= before.epoch)
    broken("epoch", number(after.pod_id),
           fmt::format("its record goes from epoch {} to {}", before.epoch, after.epoch));
}

void Ledger::takes(int machine, int pod, const std::vector<std::string>& labels) const {
  const Machine& node = world_.machine(machine);
  if (node.draining) broken("policy", pod, fmt::format("{} takes it while it is being emptied", node_name(machine)));
  if (!control::missing_labels(node.labels, labels).empty())
    broken("policy", pod, fmt::format("{} takes it without the label that it needs", node_name(machine)));
}

void Ledger::room(int machine) const {
  const Machine& node = world_.machine(machine);
  if (node.used() > node.memory)
    broken("room", -1,
           fmt::format("{} has {} MiB and holds {}", node_name(machine), node.memory >> 20, node.used() >> 20));
}

void Ledger::promises(control::Admission& admission, control::Time now, int machine) const {
  // A look from before all times: nothing is expired by it.
  for (const auto& [migration, promise] : admission.promises(control::Time::min()))
    if (promise.until && *promise.until <= now)
      broken("promise", number(promise.pod_id),
             fmt::format("{} keeps room for move {} beyond its time", node_name(machine), migration.id));
}

void Ledger::at_end() const {
  for (int i = 0; i < world_.size(); ++i) {
    Machine& node = world_.machine(i);
    if (node.daemon == nullptr) broken("unfinished", -1, node_name(i) + " has no daemon");
    if (const auto left = node.daemon->unfinished(); !left.empty())
      broken("unfinished", -1, fmt::format("{} still has {}", node_name(i), left));
    // Those that only wait for their time have none after it.
    if (auto& admission = node.daemon->starter().admission();
        !admission.promises(node.now() + control::Admission::promise_time).empty())
      broken("leaked", -1, node_name(i) + " still promises room");
    for (const auto& [id, copy] : node.copies())
      if (copy.state != CopyState::running)
        broken("unfinished", copy.pod, fmt::format("a copy on {} is neither running nor gone", node_name(i)));
  }
  for (const auto& [id, pod] : pods_) {
    if (pod.ended) continue;
    if (pod.copies.empty()) {
      if (!excused(id, pod)) broken("vanished", id, "it runs nowhere");
      continue;
    }
    const auto* record = world_.store.record(pod_name(id));
    if (record == nullptr || number(record->node) != pod.copies.front().machine)
      broken("misplaced", id,
             fmt::format("it runs on {}, and the record says {}", node_name(pod.copies.front().machine),
                         record == nullptr ? "nothing" : record->node));
    if (pod.copies.front().copy->owed) broken("unfinished", id, "pages of it are still owed");
  }
}

}  // namespace godwit::sim
