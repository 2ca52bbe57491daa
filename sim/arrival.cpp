#include "sim/arrival.hpp"

#include "sim/custody.hpp"
#include "sim/world.hpp"

namespace godwit::sim {

using control::Claim;
using control::Fate;
using control::Time;

namespace {

constexpr Time patience{10'000};

}  // namespace

Arrival::Arrival(Daemon& daemon, std::unique_ptr<Wire> wire, Hello hello)
    : Actor(daemon), number(daemon.world().next_number()), hello_(std::move(hello)), wire_(std::move(wire)) {}

void Arrival::begin() {
  wire_->belongs_to({.got = [this](const Body& body) { got(body); }, .broken = [this] { broken(); }});
  const auto refuse = [this](std::string text) {
    wire_->send(Refused{std::move(text)});
    over_ = true;
    daemon_.over(*this);
  };
  // One copy at a time, whatever its state: of two, one would be taken for the other.
  const Copy* here = machine().find(hello_.pod);
  if (here != nullptr && !(world().bug(Bug::second_copy) && here->state == CopyState::pinned))
    return refuse("it is here");
  if (const auto refusals = daemon_.starter().decide(wire_->peer(), hello_); !refusals.empty())
    return refuse(std::string(control::to_string(refusals.front().reason)));
  world().ledger.takes(daemon_.index(), hello_.pod, hello_.needs.labels);
  copy_ = machine().build(hello_.pod, hello_.needs).number;
  wire_->send(Welcome{});
  expect(patience);
  world().point(daemon_.index(), "welcome");
}

void Arrival::expect(Time limit) {
  later(limit, [this, heard = heard_] {
    if (heard == heard_) broken();
  });
}

void Arrival::got(const Body& body) {
  if (over_) return;
  ++heard_;
  if (std::holds_alternative<Pages>(body)) {
    const auto bytes = hello_.needs.memory / 2;
    machine().has(*machine().copy(copy_), bytes);
    daemon_.starter().admission().used(migration(), bytes);
    expect(patience);
  } else if (const auto* state = std::get_if<State>(&body)) {
    later(Time(world().random.between(1, 30)), [this, state = *state] { rebuild(state); });
    expect(patience);
  } else if (std::holds_alternative<Go>(body)) {
    told(true);
  } else if (std::holds_alternative<Abort>(body)) {
    told(false);
  }
}

void Arrival::rebuild(const State& state) {
  if (over_) return;
  Copy& copy = *machine().copy(copy_);
  machine().has(copy, hello_.needs.memory);
  daemon_.starter().admission().used(migration(), hello_.needs.memory);
  machine().complete(copy, state);
  const Claim::Facts facts{Claim::Role::destination, node_name(daemon_.index()), node_name(wire_->peer()),
                           hello_.before};
  copy.note = Note{facts, hello_.move};
  machine().pin(copy);
  custody_ = &daemon_.keep(copy, [this](Fate fate) { settled(fate); });
  world().point(daemon_.index(), "rebuilt");
  wire_->send(Rebuilt{});
}

void Arrival::told(bool committed) {
  if (custody_ != nullptr) return custody_->step(Claim::Told{committed});
  if (!over_ && !committed) drop();
}

void Arrival::broken() {
  if (over_) return;
  if (custody_ == nullptr) return drop();
  if (!world().bug(Bug::never_doubts)) custody_->step(Claim::Doubt{});
}

void Arrival::settled(Fate fate) {
  custody_ = nullptr;
  end(fate == Fate::here);
  if (fate != Fate::here) return;
  wire_->send(Running{});
  world().point(daemon_.index(), "running");
  Copy& copy = *machine().copy(copy_);
  if (copy.owed) daemon_.fetch(copy, std::move(wire_));
}

control::Incoming Arrival::migration() const {
  return {node_name(wire_->peer()), hello_.move};
}

void Arrival::drop() {
  machine().destroy(*machine().copy(copy_));
  end(false);
}

void Arrival::end(bool well) {
  over_ = true;
  if (well || !world().bug(Bug::promise_leaks)) daemon_.starter().admission().end(migration());
  daemon_.over(*this);
}

}  // namespace godwit::sim
