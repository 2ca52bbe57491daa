#pragma once

#include <map>
#include <memory>
#include <optional>

#include "sim/daemon.hpp"
#include "sim/events.hpp"
#include "sim/messages.hpp"

namespace godwit::sim {

class World;

enum class CopyState {
  building,  ///< goes with the daemon that makes it
  running,
  stopped,  ///< by a tracer: runs on when the daemon dies
  pinned,   ///< by the freezer: nobody's death lets it go on
};

/// What is written down beside a pod before the commit, so that the next daemon can make the same claim.
struct Note {
  control::Claim::Facts facts;
  std::string move;
  bool owes = false;  ///< source: the destination will fetch pages from this copy
};

/// A pod, or what becomes one, on one machine. Outlives daemons.
struct Copy {
  std::uint64_t number = 0;
  int pod = 0;
  CopyState state = CopyState::building;
  std::uint64_t stamp = 0;   ///< of the pod's past: grows whenever it goes on; 0: none of it is here yet
  std::uint64_t memory = 0;  ///< that it has by now
  control::Needs needs;
  bool owed = false;  ///< pages of it are still in `origin`
  std::uint64_t origin = 0;
  bool holed = false;  ///< pages are missing that nobody will bring
  std::optional<Note> note;
};

/// One computer: its pods, its clock, and the daemon when there is one.
class Machine {
 public:
  Machine(World& world, int index);
  ~Machine();

  const int index;
  control::Labels labels;
  control::Machine hardware;
  std::uint64_t memory = 0;
  bool draining = false;  ///< a file in the daemon's state directory
  double rate = 1;        ///< of its clock
  control::Time ahead{0};
  std::uint64_t boot = 1;
  bool off = false;
  std::unique_ptr<Daemon> daemon;

  [[nodiscard]] control::Time now() const;
  /// What a time of this node's clock is in truth.
  [[nodiscard]] Us span(control::Time) const;
  [[nodiscard]] std::uint64_t used() const;

  const std::map<std::uint64_t, Copy>& copies() const { return copies_; }
  Copy* copy(std::uint64_t number);
  Copy* find(int pod);  ///< the first one

  Copy& build(int pod, const control::Needs&);
  void has(Copy&, std::uint64_t bytes);
  /// The state of a pod that is frozen elsewhere is here.
  void complete(Copy&, const State&);
  /// A pod begins.
  void begin(int pod, const control::Needs&);
  void run(Copy&);
  void stop(Copy&);
  void pin(Copy&);
  void destroy(Copy&);

  void start_daemon();
  void kill_daemon();
  void lose();

 private:
  World& world_;
  std::map<std::uint64_t, Copy> copies_;
};

}  // namespace godwit::sim
