#pragma once

#include <functional>

#include "sim/daemon.hpp"
#include "sim/suspect.hpp"

namespace godwit::sim {

/// Asks the store what a copy's claim wants to know until its fate is settled, and does to the copy what follows: it
/// goes on, goes, or stays to serve what is owed.
class Custody : public Actor {
 public:
  using Settled = std::function<void(control::Fate)>;  ///< when it has been done
  Custody(Daemon&, Copy&, Settled);
  void step(const control::Claim::Event&);

  const std::uint64_t copy;
  /// Called at a question without an answer.
  std::function<void()> unanswered;

 private:
  void ask(StoreAsk);
  void settle(control::Fate);

  Suspect claim_;
  Settled settled_;
  bool was_doubtful_ = false;
};

}  // namespace godwit::sim
