#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "control/admission.hpp"
#include "control/negotiation.hpp"
#include "node/links.hpp"
#include "node/pods.hpp"
#include "node/rules.hpp"

namespace godwit::node {

/// The half of this node's daemon that decides: which node is to take a pod, and whether this one takes another's. The
/// decisions are control/'s; here they get their clock, their figures and their connections. Thread-safe.
class Starter {
 public:
  Starter(const Config&, const Links&, const Rules&, const Pods&, store::Store&);

  /// The nodes that a destination's name stands for, without this one: a node, a group of the config, or "any".
  /// `not_found` with the names that there are, `refused` when the node's owner lets no pod go there.
  Result<std::vector<std::string>> candidates(const std::string& destination) const;

  struct Wish {
    std::string move;
    std::string pod, pod_id;
    std::uint64_t epoch = 0;
    control::Needs needs;
    std::vector<std::string> candidates;
    /// By those of them that have agreed earlier in this move, and then refused.
    std::vector<std::pair<std::string, control::Refusal>> refused;
    bool probe = false;  ///< for a dry run: nothing is reserved
    std::optional<Deadline> deadline;
    const std::atomic<bool>& cancelled;
  };
  /// Messages 1 to 3: the node that has promised to take it. `refused` with each one's reason, and the name of a node
  /// that would; `busy`, `unreachable`, `cancelled`, `timeout`. Over by the deadline, and a second after it is
  /// cancelled, whatever the others do.
  Result<std::string> agree(const Wish&);
  /// The move that `node` has promised to take doesn't begin after all.
  void withdraw(const std::string& node, const std::string& move);

  /// Answers one request of `peer` on `fd`.
  void serve(Stream&, const Sender& peer);

  /// Messages 5 and 6: reasons against taking in this pod of `peer` now; none: its room is kept until `end`.
  std::vector<std::string> decide(const std::string& move, const Sender& peer, const pod::Spec&, const control::Needs&);
  void end(const std::string& move, const Sender& peer);
  /// Migrations that room is kept for, those under way among them.
  std::size_t promises();
  /// Bytes of the arriving pod that are here by now.
  void used(const std::string& move, const Sender& peer, std::uint64_t bytes);

  /// This node is to be emptied: takes no pod, and starts none. Remembered over a restart.
  Result<void> set_draining(bool);
  [[nodiscard]] bool draining() const;
  /// Reasons against running a pod with these needs here, were it started now.
  [[nodiscard]] std::vector<std::string> objections(const std::vector<std::string>& labels) const;

 private:
  [[nodiscard]] control::Room room(const Sender& peer, const std::string& pod_id, const control::Needs&) const;
  control::Answer answer_to(const control::Ask&, const Sender&);
  control::Answer answer_alone(const control::Ask&, const Sender&);
  Result<control::Answer> ask(const std::string& node, const control::Ask&, std::optional<Deadline>) const;
  /// Carries out what the negotiation wants until it is over.
  std::variant<control::Negotiation::MoveOut, control::Negotiation::GiveUp> carry_out(
      control::Negotiation&, const std::atomic<bool>& cancelled, std::optional<Deadline>);
  /// Peers that could be named as an alternative, those with the least load first.
  [[nodiscard]] std::vector<std::string> hints(const Wish&) const;

  const Config& config_;
  const Links& links_;
  const Rules& rules_;
  const Pods& pods_;
  store::Store& store_;
  const std::string draining_file_;
  const Result<control::Machine> machine_;
  mutable std::mutex mutex_;
  control::Admission admission_;
};

/// What a pod that runs here would take of another node, roughly.
control::Needs needs_of(pod::Pod&);

/// Bytes that new programs may use on this machine (MemAvailable).
std::uint64_t memory_available();

}  // namespace godwit::node
