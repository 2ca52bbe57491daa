#pragma once

#include <functional>
#include <vector>

#include "sim/events.hpp"
#include "sim/messages.hpp"
#include "sim/weather.hpp"

namespace godwit::sim {

class World;

/// Every link there is. Endpoints are nodes, and after them the store.
class Network {
 public:
  explicit Network(World& world) : world_(world) {}

  /// Delivers now or later, once, twice or never. On a connection nothing is lost for good while the sending machine
  /// lives (`alive`) and tries: it comes late.
  void send(const Message& message, const std::function<bool()>& alive);

  struct Partition {
    std::vector<bool> inside;    ///< by endpoint
    bool out = true, in = true;  ///< which directions are cut
    int only = -1;               ///< those from and to this endpoint alone
  };
  std::uint64_t cut(Partition);
  void heal(std::uint64_t partition);
  void heal_all() { partitions_.clear(); }

 private:
  void attempt(const Message&, const std::function<bool()>& alive, int tries);
  [[nodiscard]] bool passes(int from, int to) const;
  Us delay();

  World& world_;
  std::map<std::uint64_t, Partition> partitions_;
  std::uint64_t next_ = 1;
};

}  // namespace godwit::sim
