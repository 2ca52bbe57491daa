#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "control/needs.hpp"

namespace godwit::control {

/// What the store's record of a pod says.
struct Owner {
  std::string pod_id;
  std::string node;
  std::uint64_t epoch = 0;
  auto operator<=>(const Owner&) const = default;
};

/// What becomes of a frozen copy of a pod.
enum class Fate : std::uint8_t {
  here,   ///< it is the pod, and nobody else can become it any more: it goes on
  there,  ///< the peer's copy is the pod
  gone,   ///< neither is: the record is another's, or there is none
};
const char* to_string(Fate);

/// One of the two frozen copies of a pod that is moved, from the moment from which the other one could be the pod: when
/// both stand in the freezer and the source is about to commit. Nobody runs it before `Settle`.
///
/// The record is the only truth, and it moves by compare-and-swap, so that two rules are enough. Who goes on without
/// knowing what became of a commit takes the epoch away from it first: a swap that is still on its way fails then. And
/// a copy goes on here only at its own epoch or the next one: later ones belong to later copies.
///
/// A daemon that takes a frozen copy over from its predecessor begins at `Doubt`, with the same claim.
class Claim {
 public:
  enum class Role : std::uint8_t { source, destination };
  struct Facts {
    Role role = Role::source;
    std::string node, peer;
    Owner before;  ///< the record before the commit: the source owns it
    auto operator<=>(const Facts&) const = default;
  };

  // What happens.
  struct Commit {};  ///< source: the destination is complete, and says so
  struct Doubt {};   ///< the peer is lost, or this daemon is a new one
  struct Told {      ///< by the peer, who knows
    bool committed = false;
  };
  struct Swapped {  ///< the store's answer to the last Swap
    bool yes = false;
  };
  struct Seen {  ///< to the last Look
    std::optional<Owner> record;
  };
  struct NoAnswer {};  ///< the store's, to the last question
  struct Tick {};      ///< the time of a Wait is over
  struct Resolved {    ///< an operator's word, who knows what the store can't tell
    bool here = false;
  };
  using Event = std::variant<Commit, Doubt, Told, Swapped, Seen, NoAnswer, Tick, Resolved>;

  // What is to be done.
  struct Swap {
    Owner expected;
    std::string to;
  };
  struct Look {};
  struct Wait {
    Time pause;
  };
  struct Settle {
    Fate fate;
  };
  struct Nothing {};  ///< the event says nothing new
  using Action = std::variant<Swap, Look, Wait, Settle, Nothing>;

  explicit Claim(Facts facts) : facts_(std::move(facts)) {}

  Action step(const Event&);

  /// The store has been asked without an answer, and has given none since: shown as such.
  [[nodiscard]] bool doubtful() const { return doubtful_; }
  [[nodiscard]] const std::optional<Fate>& fate() const { return fate_; }
  [[nodiscard]] const Facts& facts() const { return facts_; }
  /// Two that are equal do the same whatever happens.
  auto operator<=>(const Claim&) const = default;

 private:
  enum class Asked : std::uint8_t { nothing, commit, look, fence };
  Action on(const Commit&);
  Action on(const Doubt&);
  Action on(const Told&);
  Action on(const Swapped&);
  Action on(const Seen&);
  Action on(const NoAnswer&);
  Action on(const Tick&);
  Action on(const Resolved&);
  Action ask(Asked);
  Action settle(Fate);
  Action judge(const std::optional<Owner>&);
  [[nodiscard]] const std::string& source() const;

  Facts facts_;
  Asked asked_ = Asked::nothing;
  bool waiting_ = false;
  bool doubtful_ = false;
  std::optional<Fate> fate_;
  Time pause_{50};
};

}  // namespace godwit::control
