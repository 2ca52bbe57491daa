#pragma once

#include "sim/daemon.hpp"

namespace godwit::sim {

/// A pod on its way out: migrate/send, as far as it decides.
class Departure : public Actor {
 public:
  struct Wish {
    std::vector<std::string> candidates;
    bool postcopy = false;
    std::optional<control::Time> deadline;
  };
  Departure(Daemon&, Copy&, Wish);
  void begin();
  void cancel();

  const std::uint64_t copy;

 private:
  enum class Phase { asking, searching, greeting, copying, freezing, pinned, committing, handed_over, over };

  void found(const control::Owner& record);
  void agreed(const Starter::Outcome&);
  void got(const Body&);
  void broken();
  void freeze();
  void pin();
  void commit();
  void settled(control::Fate);
  void give_up(const std::string& why);
  void finish();
  void enter(Phase, control::Time patience);
  Copy& held();
  /// As the pod is now, on this machine.
  control::Needs needs();

  const Wish wish_;
  const int pod_;
  const std::string move_;
  Phase phase_ = Phase::asking;
  std::uint64_t search_ = 0;
  control::Owner before_;
  int to_ = -1;
  std::unique_ptr<Wire> wire_;
  bool rebuilt_ = false;
};

}  // namespace godwit::sim
