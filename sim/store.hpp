#pragma once

#include <map>
#include <string>

#include "sim/messages.hpp"

namespace godwit::sim {

class World;

/// The store as its clients see it: it may be slow, away, or carry out what it gives no answer to.
class Store {
 public:
  explicit Store(World& world) : world_(world) {}

  void receive(const Message&);

  enum class Outage { none, deaf, dumb, parked };  ///< drops what comes; gives no answers; carries it out afterwards
  void begin(Outage outage) { outage_ = outage; }
  void end();

  [[nodiscard]] const control::Owner* record(const std::string& pod) const;
  /// A pod's record from the beginning of time.
  void put(const control::Owner& owner) { records_[owner.pod_id] = owner; }

 private:
  StoreAnswer carry_out(const StoreAsk&);

  World& world_;
  std::map<std::string, control::Owner> records_;
  Outage outage_ = Outage::none;
  std::vector<Message> parked_;
};

}  // namespace godwit::sim
