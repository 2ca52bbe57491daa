#include <utility>

#include "sim/world.hpp"

/// What goes wrong, and when.
namespace godwit::sim {

void World::every(double rate, std::function<void()> task) {
  if (rate <= 0) return;
  const Us pause(static_cast<std::int64_t>(2e6 / rate * random.share()) + 1);
  if (events.now() + pause >= setup_.time) return;
  events.after(pause, [this, rate, task = std::move(task)] {
    if (healed_) return;
    task();
    every(rate, task);
  });
}

void World::fail_now_and_then() {
  const auto any_node = [this] { return static_cast<int>(random.below(machines_.size())); };
  every(weather.daemon_crashes, [=, this] { kill_daemon(any_node()); });
  every(weather.machine_crashes, [=, this] { lose_machine(any_node()); });
  every(weather.partitions, [this] {
    std::vector<bool> inside(machines_.size() + 1);
    for (std::size_t i = 0; i < inside.size(); ++i) inside[i] = random.chance(0.4);
    cut_off(std::move(inside));
  });
  every(weather.partitions, [=, this] {
    std::vector<bool> inside(machines_.size() + 1);
    inside[static_cast<std::size_t>(any_node())] = true;
    cut_off(std::move(inside), random.chance(0.5) ? size() : any_node());
  });
  every(weather.store_outages, [this] { store_fails(); });
  every(weather.clock_jumps, [this] { clock_jumps(); });
}

void World::kill_daemon(int node) {
  if (healed_ || !machine(node).daemon) return;
  ++faults["daemons killed"];
  machine(node).kill_daemon();
  events.after(Us(random.between(5'000, 6'000'000)), [this, node] {
    if (!machine(node).off) machine(node).start_daemon();
  });
}

void World::lose_machine(int node) {
  if (healed_ || machine(node).off) return;
  ++faults["machines lost"];
  machine(node).lose();
  events.after(Us(random.between(500'000, 10'000'000)), [this, node] { machine(node).start_daemon(); });
}

void World::cut_off(std::vector<bool> inside, int only) {
  Network::Partition partition{.inside = std::move(inside), .only = only};
  if (random.chance(weather.one_way)) (random.chance(0.5) ? partition.out : partition.in) = false;
  const bool one_way = !partition.out || !partition.in;
  const std::string what = only >= 0 ? "links cut" : "partitions";
  ++faults[one_way ? what + ", in one direction" : what];
  say(-1, -1, "{}{}", what, one_way ? ", in one direction" : "");
  const auto id = network.cut(std::move(partition));
  const Us most(random.chance(0.5) ? 1'000'000 : 15'000'000);
  events.after(random.between(Us(10'000), most), [this, id] { network.heal(id); });
}

void World::store_fails() {
  static constexpr std::array<const char*, 4> names{"", "deaf", "dumb", "late"};
  const auto outage = static_cast<Store::Outage>(random.between(1, 3));
  const std::string name = names[static_cast<std::size_t>(outage)];
  ++faults["store " + name];
  say(-1, -1, "the store is {}", name);
  store.begin(outage);
  events.after(Us(random.between(10'000, 8'000'000)), [this] { store.end(); });
}

/// Forward only: the clock in question never goes back.
void World::clock_jumps() {
  ++faults["clock jumps"];
  machine(static_cast<int>(random.below(machines_.size()))).ahead += control::Time(random.between(1, 60'000));
}

void World::point(int node, const char* name) {
  if (healed_ || !random.chance(weather.points)) return;
  static const std::vector<Us> delays{Us(0), Us(100), Us(3'000), Us(200'000)};
  const Us delay = random.pick(delays);
  const auto kind = random.below(8);
  say(node, -1, "something will go wrong at: {}", name);
  events.after(delay, [this, node, kind] {
    if (healed_) return;
    if (kind < 3) return kill_daemon(node);
    if (kind == 3) return lose_machine(node);
    if (kind == 4) return store_fails();
    const int only = kind == 5 ? size() : -1;
    std::vector<bool> inside(machines_.size() + 1);
    inside[static_cast<std::size_t>(node)] = true;
    cut_off(std::move(inside), only);
  });
}

void World::heal() {
  say(-1, -1, "everything is healed");
  healed_ = true;
  network.heal_all();
  store.end();
  weather.loss = weather.duplicate = weather.spikes = 0;
}

}  // namespace godwit::sim
