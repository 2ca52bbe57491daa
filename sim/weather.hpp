#pragma once

#include <map>
#include <string>

#include "sim/events.hpp"
#include "sim/random.hpp"

namespace godwit::sim {

/// How bad things are in one run. Drawn anew for each: one of few faults at a time finds what a storm hides.
struct Weather {
  Us latency{500}, jitter{500}, spike{0};
  double loss = 0, duplicate = 0, spikes = 0;      ///< of messages
  double partitions = 0, one_way = 0.3;            ///< a second; share of them
  double daemon_crashes = 0, machine_crashes = 0;  ///< a second, in the whole cluster
  double store_outages = 0;                        ///< a second
  double points = 0;                  ///< how likely something goes wrong just when a move comes to its next phase
  double drift = 0, clock_jumps = 0;  ///< share of time; a second

  static Weather draw(Random&);
};

/// Faults by kind, and what became of the moves.
using Counts = std::map<std::string, std::uint64_t>;

}  // namespace godwit::sim
