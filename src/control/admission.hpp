#pragma once

#include <compare>
#include <optional>
#include <set>

#include "control/messages.hpp"

namespace godwit::control {

/// What a node's owner has said about guests.
struct Policy {
  Labels labels;
  bool draining = false;   ///< is to be emptied: takes nothing
  bool guests = true;      ///< false: only pods whose home it is
  std::uint64_t pods = 0;  ///< most at a time; 0: any number
};

/// What a node has to give at this moment, by what the operating system says: promises are not subtracted.
struct Room {
  std::uint64_t memory = 0;       ///< bytes
  double processors = 0;          ///< of the machine, less what the pods here were given as their limits
  std::uint64_t descriptors = 0;  ///< that the daemon may still open
  std::set<std::string> pods;     ///< ids of those that are here
  Machine machine;
  std::vector<Refusal>
      objections;  ///< what only a look at this one pod has shown: an address that is taken, a user who may not come
};

/// A migration as its destination knows it: an id means something only together with the node that has given it.
struct Incoming {
  std::string from, id;
  std::strong_ordering operator<=>(const Incoming&) const = default;
};

/// The half of a node's starter that says yes or no. A yes is a promise: what it needs is kept for it until the
/// migration that uses it is over, or, if none begins, until its time is.
class Admission {
 public:
  /// How long a yes lasts without a migration.
  static constexpr Time promise_time{10'000};
  /// Promises at a time. Beyond that everything is refused as busy: a peer can't fill our memory with asks.
  static constexpr std::size_t most_promises = 256;

  Admission(std::string node, Policy policy) : node_(std::move(node)), policy_(std::move(policy)) {}

  void set(const Policy& policy) { policy_ = policy; }
  [[nodiscard]] const Policy& policy() const { return policy_; }

  /// Message 1 to message 2, about this node alone. Asked twice for one move it says the same and promises once.
  Answer consider(const Ask&, const Room&, Time now);

  /// Messages 5 and 6: that migration of that pod has begun, and these are its exact needs. Without a promise
  /// (its time was over, say) it is decided as if asked for now. Nothing is returned for a yes, which then lasts until
  /// `end`.
  std::vector<Refusal> decide(const Incoming&, const std::string& pod_id, const Needs&, const Room&, Time now);

  /// So many bytes of what was promised to this migration are in use by now, and show in what the system has to give.
  void used(const Incoming&, std::uint64_t bytes);

  /// The migration is over.
  void end(const Incoming&);
  /// None will come, says who has asked. Nothing happens when it is under way.
  void withdraw(const Incoming&);

  /// This node itself asks `peer` to take a pod. Requests that cross are decided by the pods' ids, the smaller first,
  /// so that both nodes come to the same without another word; the other one is busy until then.
  void asking(const std::string& move, const std::string& pod_id, const std::string& peer);
  void asked(const std::string& move);

  struct Promise {
    std::string pod_id;
    Needs needs;
    std::optional<Time> until;  ///< none: its migration is under way
    std::uint64_t used = 0;
  };
  /// Those whose time is over are gone.
  const std::map<Incoming, Promise>& promises(Time now);

 private:
  struct Asking {
    std::string pod_id, peer;
  };

  void expire(Time now);
  [[nodiscard]] std::vector<Refusal> refusals(const Incoming&, const std::string& pod_id, const Needs&,
                                              const Room&) const;

  std::string node_;
  Policy policy_;
  std::map<Incoming, Promise> promises_;
  std::map<std::string, Asking> asking_;
};

}  // namespace godwit::control
