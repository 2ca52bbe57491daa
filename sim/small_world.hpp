#pragma once

#include <map>
#include <string>
#include <vector>

#include "sim/explore.hpp"
#include "sim/small_state.hpp"
#include "sim/suspect.hpp"

namespace godwit::sim::small {

using control::Claim;
using control::Fate;

/// What must never be.
struct Broken {
  std::string what;
  bool at_rest = false;  ///< by what is, not by what was just about to happen
};

/// One thing that happens, and the state after it.
struct Step {
  State state;
  std::string what;
  bool fault = false;
};

/// The rules of the small world: what may happen in a state, and what must never be.
class Model {
 public:
  Model(const SmallWorld& world, Bug bug) : world_(world), bug_(bug) {}

  [[nodiscard]] State first() const;
  /// Everything that may happen next. Throws `Broken`; the step at which it was is the last one of `steps()` then.
  const std::vector<Step>& each(const State&);
  [[nodiscard]] const std::vector<Step>& steps() const { return steps_; }
  /// Where nothing will happen any more by itself. Throws `Broken`.
  void check_end(const State&) const;

 private:
  void each_move(const State&, Byte node, Byte slot);
  void each_claim(const State&, Byte node, Byte slot);
  void each_message(const State&);
  void each_store(const State&);
  void each_crash(const State&, Byte node);
  void each_drain(const State&, Byte node, Byte slot);
  void each_word(const State&, Byte node, Byte slot);
  template <typename Change>
  void happens(const State&, bool fault, std::string what, Change change);

  void deliver(State&, const Message&);
  void carry_out(State&, const Request&);
  void restart(State&, Byte node);

  void claim(State&, Byte node, Byte slot, const Claim::Event&);
  void settle(State&, Byte node, Byte slot, Fate);
  void resolve(State&, Byte node, Byte slot, bool here);
  [[nodiscard]] bool doubtful(const Copy&) const;
  Claim::Facts facts(const State&, const Copy&) const;
  Byte known(const Suspect&);

  static void say(State&, Say, Byte move, Byte fresh = 0);
  static void go_on(State&, Copy&);
  static void destroy(State&, Copy&);
  static Copy* find(State&, Byte node, Byte move, Byte role);
  static bool excused(const State&);
  static bool owed_by(const State&, Byte move);

  const SmallWorld& world_;
  const Bug bug_;
  std::vector<Suspect> claims_;
  std::map<Suspect, Byte> numbers_;
  std::vector<Step> steps_;
};

}  // namespace godwit::sim::small
