#pragma once

#include "sim/daemon.hpp"

namespace godwit::sim {

/// A pod on its way in: migrate/receive, as far as it decides.
class Arrival : public Actor {
 public:
  Arrival(Daemon&, std::unique_ptr<Wire>, Hello);
  void begin();
  void told(bool committed);

  const std::uint64_t number;
  [[nodiscard]] int pod() const { return hello_.pod; }

 private:
  void got(const Body&);
  void broken();
  void rebuild(const State&);
  void settled(control::Fate);
  void drop();
  void end(bool well);
  void expect(control::Time patience);
  [[nodiscard]] control::Incoming migration() const;

  const Hello hello_;
  std::unique_ptr<Wire> wire_;
  std::uint64_t copy_ = 0;
  Custody* custody_ = nullptr;  ///< once it is pinned
  bool over_ = false;
  std::uint64_t heard_ = 0;
};

}  // namespace godwit::sim
