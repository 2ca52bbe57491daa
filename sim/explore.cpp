#include "sim/explore.hpp"

#include <cstring>
#include <deque>
#include <string_view>
#include <unordered_set>

#include "sim/small_world.hpp"

namespace godwit::sim {

using small::Broken;
using small::Model;
using small::State;

std::vector<SmallWorld> small_worlds() {
  return {
      {.name = "one move", .daemon_crashes = 2, .silences = 2, .doubles = 1},
      {.name = "one move, post-copy", .postcopy = true, .daemon_crashes = 2, .silences = 2},
      {.name = "one move, machines lost", .daemon_crashes = 1, .machine_crashes = 1, .silences = 1},
      {.name = "one move, post-copy, machines lost",
       .postcopy = true,
       .daemon_crashes = 1,
       .machine_crashes = 1,
       .silences = 1},
      {.name = "two moves", .moves = 2, .daemon_crashes = 1, .silences = 1},
      {.name = "two moves, post-copy", .moves = 2, .postcopy = true, .silences = 1},
      {.name = "two moves among three nodes", .nodes = 3, .moves = 2, .daemon_crashes = 1},
      {.name = "three moves, a message twice", .moves = 3, .doubles = 1},
  };
}

Explored explore(const SmallWorld& world, Bug bug, std::size_t most) {
  Model model(world, bug);
  struct Seen {
    State state;
    std::uint32_t parent;
    std::uint16_t step, depth;
  };
  std::deque<Seen> seen;
  const auto bytes = [&](std::uint32_t at) {
    return std::string_view(reinterpret_cast<const char*>(&seen[at].state), sizeof(State));
  };
  const auto hash = [&](std::uint32_t at) { return std::hash<std::string_view>{}(bytes(at)); };
  const auto same = [&](std::uint32_t a, std::uint32_t b) { return bytes(a) == bytes(b); };
  std::unordered_set<std::uint32_t, decltype(hash), decltype(same)> index(1 << 16, hash, same);

  Explored explored;
  const auto tell = [&](std::uint32_t at) {
    std::vector<std::uint32_t> way;
    for (; at != 0; at = seen[at].parent) way.push_back(at);
    for (auto step = way.rbegin(); step != way.rend(); ++step) {
      const auto& steps = model.each(seen[seen[*step].parent].state);
      explored.events.push_back(steps[seen[*step].step].what);
    }
  };

  seen.push_back({model.first(), 0, 0, 0});
  index.insert(0);
  for (std::uint32_t at = 0; at < seen.size(); ++at) {
    const State now = seen[at].state;
    explored.depth = seen[at].depth;
    try {
      const auto& steps = model.each(now);
      bool ends = true;
      for (std::size_t i = 0; i < steps.size(); ++i) {
        ++explored.transitions;
        seen.push_back(
            {steps[i].state, at, static_cast<std::uint16_t>(i), static_cast<std::uint16_t>(seen[at].depth + 1)});
        ends = ends && (steps[i].fault || std::memcmp(&steps[i].state, &now, sizeof now) == 0);
        if (!index.insert(static_cast<std::uint32_t>(seen.size() - 1)).second) seen.pop_back();
      }
      if (ends) {
        ++explored.ends;
        model.check_end(now);
      }
    } catch (const Broken& broken) {
      explored.violation = broken.what;
      const std::string last = model.steps().empty() ? "" : model.steps().back().what;
      tell(at);
      if (!broken.at_rest) explored.events.push_back(last);
      break;
    }
    if (seen.size() > most) {
      explored.complete = false;
      break;
    }
  }
  explored.states = seen.size();
  return explored;
}

}  // namespace godwit::sim
