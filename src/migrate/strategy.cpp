#include "migrate/strategy.hpp"

#include <array>
#include <utility>

namespace godwit::migrate {

namespace {

constexpr std::array<std::pair<std::string_view, Strategy>, 6> names{{{"freeze", Strategy::freeze},
                                                                      {"precopy", Strategy::precopy},
                                                                      {"postcopy", Strategy::postcopy},
                                                                      {"hybrid", Strategy::hybrid},
                                                                      {"eager-dirty", Strategy::eager_dirty},
                                                                      {"auto", Strategy::automatic}}};

/// So few pages cost less than the overhead of another round.
constexpr std::uint64_t few_pages = 32;
/// A freeze with so many is still about a millisecond.
constexpr std::uint64_t tolerable_pages = 256;
constexpr std::uint32_t most_rounds = 30;

/// Another round would leave no fewer than this one did: the program writes as fast as we send.
bool stuck(const Standing& at) {
  return at.round >= 2 && at.dirty * 4 > at.dirty_before * 3;
}

}  // namespace

std::optional<Strategy> strategy_named(std::string_view name) {
  for (const auto& [text, strategy] : names)
    if (text == name) return strategy;
  return std::nullopt;
}

std::string_view name_of(Strategy strategy) {
  for (const auto& [text, known] : names)
    if (known == strategy) return text;
  return "?";
}

Next decide(Strategy strategy, const Standing& at) {
  switch (strategy) {
    case Strategy::freeze:
      return Next::freeze;
    case Strategy::eager_dirty:
    case Strategy::postcopy:
      return Next::reference;
    case Strategy::hybrid:
      return at.round_complete ? Next::reference : Next::again;
    case Strategy::precopy:
      if (!at.round_complete) return Next::again;
      if (at.dirty <= few_pages || at.round >= most_rounds) return Next::freeze;
      return stuck(at) ? Next::freeze : Next::again;
    case Strategy::automatic:
      // A tenth of the pod sent in vain, now or surely by the next round: stop trying.
      if (at.in_vain * 10 > at.resident && at.resident > tolerable_pages * 10) return Next::reference;
      if (!at.round_complete) return Next::again;
      if (at.dirty <= few_pages) return Next::freeze;
      if (stuck(at) || at.round >= most_rounds) return at.dirty <= tolerable_pages ? Next::freeze : Next::reference;
      return Next::again;
  }
  return Next::freeze;
}

}  // namespace godwit::migrate
