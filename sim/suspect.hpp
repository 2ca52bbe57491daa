#pragma once

#include "control/ownership.hpp"
#include "sim/bugs.hpp"

namespace godwit::sim {

/// A Claim, or one in which a bug has been planted.
class Suspect {
 public:
  Suspect(control::Claim::Facts facts, Bug bug) : claim_(std::move(facts)), bug_(bug) {}

  control::Claim::Action step(const control::Claim::Event&);
  [[nodiscard]] bool doubtful() const { return claim_.doubtful(); }
  [[nodiscard]] const control::Claim::Facts& facts() const { return claim_.facts(); }
  auto operator<=>(const Suspect&) const = default;

 private:
  control::Claim claim_;
  Bug bug_;
  bool ended_ = false;  ///< wrongly
};

}  // namespace godwit::sim
