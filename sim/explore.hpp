#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "sim/bugs.hpp"

namespace godwit::sim {

/// A world so small that every order of events in it can be tried: one pod, two or three nodes, one store.
struct SmallWorld {
  std::string name;
  int nodes = 2;
  int moves = 1;
  bool postcopy = false;
  // How often at most. Messages may be lost, late and in any order always, and so may what is sent to the store.
  int daemon_crashes = 0;
  int machine_crashes = 0;
  int silences = 0;  ///< questions to the store whose answers are lost, although they may be carried out
  int doubles = 0;   ///< messages that come twice, questions that are carried out twice
};
/// Those that `explore` is run for.
std::vector<SmallWorld> small_worlds();

struct Explored {
  std::size_t states = 0, transitions = 0, ends = 0;
  std::size_t depth = 0;
  bool complete = true;             ///< false: stopped at `most`
  std::string violation;            ///< the invariant; empty: none
  std::vector<std::string> events;  ///< that lead to it; no shorter way does
};

/// Breadth first, over every interleaving, with control::Claim for each copy.
Explored explore(const SmallWorld&, Bug, std::size_t most);

}  // namespace godwit::sim
