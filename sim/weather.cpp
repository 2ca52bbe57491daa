#include "sim/weather.hpp"

namespace godwit::sim {

Weather Weather::draw(Random& random) {
  Weather weather;
  const auto often = [&](double most) { return random.chance(0.6) ? most * random.share() * random.share() : 0.0; };
  weather.latency = Us(random.between(50, 5'000));
  weather.jitter = Us(random.between(0, 5'000));
  weather.spike = Us(random.between(10'000, 8'000'000));
  weather.loss = often(0.3);
  weather.duplicate = often(0.3);
  weather.spikes = often(0.1);
  weather.partitions = often(0.5);
  weather.one_way = random.share();
  weather.daemon_crashes = often(1.0);
  weather.machine_crashes = often(0.2);
  weather.store_outages = often(0.5);
  weather.points = often(0.2);
  weather.drift = often(0.1);
  weather.clock_jumps = often(0.2);
  return weather;
}

}  // namespace godwit::sim
