#pragma once

#include <functional>
#include <map>
#include <memory>

#include "sim/messages.hpp"

namespace godwit::sim {

class Daemon;
class Actor;

/// A daemon's end of the store: one answer to a question, or none in time.
class StoreEnd {
 public:
  static constexpr control::Time patience{2000};
  using Done = std::function<void(const StoreAnswer*)>;  ///< null: no answer

  explicit StoreEnd(Daemon& daemon) : daemon_(daemon) {}
  void ask(Actor& asker, StoreAsk, Done);
  void receive(const StoreAnswer&);

 private:
  struct Pending {
    const Actor* asker;
    std::weak_ptr<int> alive;
    StoreAsk::What what;
    Done done;
  };
  Daemon& daemon_;
  std::map<std::uint64_t, Pending> pending_;
  std::map<std::uint64_t, const Actor*> late_;  ///< for a bug
};

}  // namespace godwit::sim
