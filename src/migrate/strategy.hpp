#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Which pages go when: decided here, from counts only.
namespace godwit::migrate {

enum class Strategy : std::uint8_t {
  freeze,       ///< all in the freeze
  precopy,      ///< all before, in rounds; last dirty in the freeze
  postcopy,     ///< all on reference
  hybrid,       ///< one round before; what is dirty then, on reference
  eager_dirty,  ///< resident modified pages in the freeze; the rest on reference
  automatic,    ///< pre-copy that turns into hybrid when it doesn't pay
};

[[nodiscard]] std::optional<Strategy> strategy_named(std::string_view name);
[[nodiscard]] std::string_view name_of(Strategy);

/// Copies while the pod runs.
[[nodiscard]] constexpr bool copies_before(Strategy s) {
  return s == Strategy::precopy || s == Strategy::hybrid || s == Strategy::automatic;
}

/// Where pre-copy stands at the end of a round (or of a slice of the first).
struct Standing {
  std::uint32_t round = 1;
  bool round_complete = true;
  std::uint64_t resident = 0;      ///< pages that have to travel
  std::uint64_t sent = 0;          ///< pages sent in this round so far
  std::uint64_t in_vain = 0;       ///< pages sent more than once so far, or written again already since they were sent
  std::uint64_t dirty = 0;         ///< pages that another round would send
  std::uint64_t dirty_before = 0;  ///< the same at the end of the round before; 0 in the first
};

enum class Next : std::uint8_t {
  again,      ///< another round (or slice)
  freeze,     ///< stop the pod and send what is left in the freeze
  reference,  ///< stop the pod, restart it at once, and have the rest fetched on reference
};

[[nodiscard]] Next decide(Strategy, const Standing&);

}  // namespace godwit::migrate
