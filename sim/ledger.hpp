#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "control/admission.hpp"
#include "control/ownership.hpp"

namespace godwit::sim {

class World;
struct Copy;

/// What must never be, and was.
struct Violation {
  std::string invariant;
  int pod;  ///< -1: no pod in particular
  std::string text;
};

/// Sees everything, unlike any node, and throws a `Violation` at the step that breaks an invariant.
///
/// Two running: never. Stale: what runs has lost and repeated nothing (a copy's stamp is the pod's newest).
/// Machine: nothing runs where something is missing that it has run with.
/// Holes: nothing runs on zeros where it had pages. Vanished: the last copy goes only with the machine that owned the
/// pod. Needed: nor a copy that pages are still owed from. Epoch: a record's never goes back. Policy: no node takes a
/// pod that its owner or its labels forbid. Room: no machine is given more than it has. Promise: none outlives its
/// time. Unfinished, misplaced, leaked: what is left at the end, when everything has been healed for long enough.
class Ledger {
 public:
  explicit Ledger(World& world) : world_(world) {}

  /// A pod that nobody has seen before.
  void born(Copy&, int machine);
  /// A frozen pod's state has become a copy of it.
  void complete(Copy&, int machine);
  void runs(Copy&, int machine);
  /// The user has ended the pod.
  void ended(int pod) { pods_.at(pod).ended = true; }
  void destroyed(const Copy&, int machine);
  /// With all that is on it.
  void machine_lost(int machine, const std::map<std::uint64_t, Copy>& copies);

  void recorded(const control::Owner& before, const control::Owner& after) const;
  void takes(int machine, int pod, const std::vector<std::string>& labels) const;
  void room(int machine) const;
  void promises(control::Admission&, control::Time now, int machine) const;
  void at_end() const;

 private:
  struct Whole {
    const Copy* copy;
    int machine;
  };
  struct Pod {
    std::uint64_t latest = 0;
    std::vector<Whole> copies;
    std::set<std::string> seen;  ///< of the machines that it has run on
    bool ended = false;
    bool excused = false;  ///< the machine that owned it, or the one that owed it pages, was lost
    std::set<int> lost;  ///< machines that were lost with a complete copy: what is committed to them then is lost, too
  };
  [[nodiscard]] bool excused(int pod, const Pod&) const;
  [[noreturn]] static void broken(std::string invariant, int pod, std::string text);

  World& world_;
  std::map<int, Pod> pods_;
};

}  // namespace godwit::sim
