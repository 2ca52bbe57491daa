#pragma once

#include <functional>
#include <map>

#include "sim/messages.hpp"

namespace godwit::sim {

class Daemon;

/// A daemon's end of a connection: what is sent arrives in its order and once, until it breaks. What the other end had
/// sent by then may still come.
class Wire {
 public:
  struct Owner {
    std::function<void(const Body&)> got;
    std::function<void()> broken;  ///< once
  };
  Wire(Daemon&, int peer, std::uint64_t connection);
  ~Wire();  ///< closes it: the kernel does, if the daemon has no time to
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  void belongs_to(Owner owner) { owner_ = std::move(owner); }
  void send(Body);
  void receive(const Message&);
  void reset();
  [[nodiscard]] int peer() const { return peer_; }
  [[nodiscard]] bool open() const { return open_; }

 private:
  Daemon& daemon_;
  const int peer_;
  const std::uint64_t connection_;
  Owner owner_;
  bool open_ = true;
  std::uint64_t sent_ = 0, got_ = 0;
  std::map<std::uint64_t, Body> early_;
};

}  // namespace godwit::sim
