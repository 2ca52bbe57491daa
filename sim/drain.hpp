#pragma once

#include "sim/daemon.hpp"

/// Post-copy after the restart. The source's copy keeps the owed pages until the destination has got the last one; a
/// connection that breaks is made again by the destination.
namespace godwit::sim {

class Serving : public Actor {
 public:
  Serving(Daemon&, Copy&, std::unique_ptr<Wire>);
  void take(std::unique_ptr<Wire>);
  void not_needed();

  const std::uint64_t copy;

 private:
  void ask();
  void end();

  std::unique_ptr<Wire> wire_;
};

class Fetching : public Actor {
 public:
  Fetching(Daemon&, Copy&, std::unique_ptr<Wire>);

  const std::uint64_t copy;

 private:
  void take(std::unique_ptr<Wire>);
  void connect();
  void got(const Body&);

  std::unique_ptr<Wire> wire_;
};

}  // namespace godwit::sim
