#include "sim/wire.hpp"

#include "sim/world.hpp"

namespace godwit::sim {

Wire::Wire(Daemon& daemon, int peer, std::uint64_t connection) : daemon_(daemon), peer_(peer), connection_(connection) {
  daemon_.wires[connection_] = this;
}

Wire::~Wire() {
  if (open_) send(Closed{});
  daemon_.wires.erase(connection_);
}

void Wire::send(Body body) {
  if (!open_) return;
  daemon_.send({daemon_.index(), peer_, connection_, sent_++, std::move(body)});
}

void Wire::receive(const Message& message) {
  if (message.number >= got_) early_.emplace(message.number, message.body);
  for (auto next = early_.find(got_); open_ && next != early_.end(); next = early_.find(got_)) {
    const Body body = std::move(next->second);
    early_.erase(next);
    ++got_;
    if (std::holds_alternative<Closed>(body)) return reset();
    // The owner may hand the wire on in between.
    const auto owner = owner_;
    if (owner.got) owner.got(body);
  }
}

void Wire::reset() {
  if (!open_) return;
  open_ = false;
  const auto owner = owner_;
  if (owner.broken) owner.broken();
}

}  // namespace godwit::sim
