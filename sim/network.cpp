#include "sim/network.hpp"

#include "sim/world.hpp"

namespace godwit::sim {
namespace {

constexpr int most_tries = 12;
constexpr Us first_retry{200'000}, longest_retry{5'000'000};

}  // namespace

std::uint64_t Network::cut(Partition partition) {
  partitions_.emplace(next_, std::move(partition));
  return next_++;
}

void Network::heal(std::uint64_t partition) {
  partitions_.erase(partition);
}

bool Network::passes(int from, int to) const {
  for (const auto& [id, partition] : partitions_) {
    const bool a = partition.inside[static_cast<std::size_t>(from)], b = partition.inside[static_cast<std::size_t>(to)];
    if (partition.only >= 0 && from != partition.only && to != partition.only) continue;
    if (a != b && (a ? partition.out : partition.in)) return false;
  }
  return true;
}

Us Network::delay() {
  auto& random = world_.random;
  Us delay = world_.weather.latency + Us(random.below(static_cast<std::uint64_t>(world_.weather.jitter.count()) + 1));
  if (random.chance(world_.weather.spikes)) {
    delay += Us(random.below(static_cast<std::uint64_t>(world_.weather.spike.count()) + 1));
    ++world_.faults["messages late"];
  }
  return delay;
}

void Network::send(const Message& message, const std::function<bool()>& alive) {
  attempt(message, alive, 0);
}

void Network::attempt(const Message& message, const std::function<bool()>& alive, int tries) {
  const bool lost = world_.random.chance(world_.weather.loss);
  if (lost || !passes(message.from, message.to)) {
    ++world_.faults[lost ? "messages lost" : "messages cut off"];
    if (message.connection == 0 || tries >= most_tries) return;
    const Us retry = std::min(first_retry * (1 << std::min(tries, 10)), longest_retry);
    world_.events.after(retry, [this, message, alive, tries] {
      if (alive()) attempt(message, alive, tries + 1);
    });
    return;
  }
  const auto deliver = [this, message] { world_.deliver(message); };
  world_.events.after(delay(), deliver);
  if (!world_.random.chance(world_.weather.duplicate)) return;
  ++world_.faults["messages doubled"];
  world_.events.after(delay(), deliver);
}

}  // namespace godwit::sim
