#include <algorithm>

#include "sim/world.hpp"

/// What users and owners want.
namespace godwit::sim {
namespace {

constexpr std::uint64_t mib = 1 << 20;
constexpr std::size_t most_candidates = 8;

}  // namespace

void World::populate() {
  const bool mixed = random.chance(0.3);
  for (auto& machine : machines_) {
    machine->memory = static_cast<std::uint64_t>(random.between(2'048, 8'192)) * mib;
    machine->rate = 1 + weather.drift * (2 * random.share() - 1);
    machine->ahead = control::Time(random.between(0, 1'000'000));
    machine->labels["zone"] = random.chance(0.5) ? "x" : "y";
    if (random.chance(0.7)) machine->labels["secure"] = "";
    // Bought at different times, or updated one after the other.
    machine->hardware.vdso = mixed && random.chance(0.1) ? "new" : "old";
    for (const char* feature : {"avx2", "sse2"})
      if (!mixed || random.chance(0.8)) machine->hardware.cpu_flags.emplace_back(feature);
  }
  const int pods = random.between(size(), 2 * size());
  for (int i = 0; i < pods; ++i) create(static_cast<int>(random.below(machines_.size())));
}

void World::create(int node) {
  control::Needs needs{.memory = static_cast<std::uint64_t>(random.between(64, 1'500)) * mib,
                       .processors = 1,
                       .descriptors = 10,
                       .home = node_name(node)};
  if (random.chance(0.2)) needs.labels.emplace_back("secure");
  if (random.chance(0.1)) needs.labels.emplace_back("zone=x");
  Machine& at = machine(node);
  std::uint64_t promised = 0;
  if (at.daemon)
    for (const auto& [move, promise] : at.daemon->starter().admission().promises(at.now()))
      promised += promise.needs.memory;
  if (at.draining || at.off || at.used() + promised + needs.memory > at.memory) return;
  if (!control::missing_labels(at.labels, needs.labels).empty()) return;
  const int pod = pods_++;
  store.put({pod_name(pod), node_name(node), 1});
  at.begin(pod, needs);
}

void World::users_want() {
  every(1.0 * size(), [this] { wish(); });
}

std::vector<std::string> World::some_nodes(std::size_t most) {
  std::vector<std::string> names;
  for (const auto count = 1 + random.below(most); names.size() < count;) {
    auto name = node_name(static_cast<int>(random.below(machines_.size())));
    if (std::ranges::count(names, name) == 0) names.push_back(std::move(name));
  }
  return names;
}

void World::wish() {
  const int node = static_cast<int>(random.below(machines_.size()));
  Machine& at = machine(node);
  if (!at.daemon) return;
  const auto what = random.below(100);
  if (what < 4) return create(node);
  std::vector<int> here;
  for (const auto& [number, copy] : at.copies()) here.push_back(copy.pod);
  const auto most = std::min(most_candidates, machines_.size());
  const auto move = [&](Machine& from, int pod, std::vector<std::string> to) {
    std::optional<control::Time> deadline;
    if (random.chance(0.1)) deadline = from.now() + control::Time(random.between(1, 5'000));
    if (from.daemon) from.daemon->move(pod, std::move(to), random.chance(0.4), deadline);
  };
  if (what < 8) {
    at.daemon->starter().set_draining(!at.draining);
    say(node, -1, "{}", at.draining ? "is to be emptied" : "may be filled again");
    if (at.draining)
      for (const int pod : here) move(at, pod, some_nodes(most));
    return;
  }
  if (here.empty()) return;
  const int pod = random.pick(here);
  if (what < 10) return at.daemon->end_pod(pod);
  if (what < 20) return at.daemon->cancel(pod);
  auto to = some_nodes(random.chance(0.6) ? 1 : most);
  // Who was refused, or has seen a move fail, tries again.
  if (what < 55 && last_pod_ >= 0) {
    for (auto& from : machines_)
      if (from->find(last_pod_) != nullptr) move(*from, last_pod_, last_to_);
    return;
  }
  last_pod_ = pod;
  last_to_ = to;
  // The other way round at the same time, or once more with another destination.
  Machine& peer = machine(number(to.front()));
  const int other = peer.copies().empty() ? -1 : peer.copies().begin()->second.pod;
  move(at, pod, to);
  if (what < 70 && other >= 0) move(peer, other, {node_name(node)});
  if (what < 75) move(at, pod, some_nodes(most));
}

}  // namespace godwit::sim
