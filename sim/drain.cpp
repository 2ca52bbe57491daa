#include "sim/drain.hpp"

#include "sim/world.hpp"

namespace godwit::sim {
namespace {

constexpr control::Time retry{500}, question{2'000}, silence{10'000};

}  // namespace

Serving::Serving(Daemon& daemon, Copy& held, std::unique_ptr<Wire> wire) : Actor(daemon), copy(held.number) {
  take(std::move(wire));
  later(question, [this] { ask(); });
}

void Serving::take(std::unique_ptr<Wire> wire) {
  wire_ = std::move(wire);
  if (!wire_) return;
  wire_->belongs_to({.got =
                         [this](const Body& body) {
                           if (std::holds_alternative<Drained>(body)) end();
                         },
                     .broken = {}});
  const auto pushing = control::Time(world().random.between(1, 3'000));
  later(pushing, [this, wire = wire_.get()] {
    if (wire != wire_.get()) return;
    world().point(daemon_.index(), "push");
    wire_->send(Pushed{});
  });
}

/// That nothing is owed any more may have been said in vain.
void Serving::ask() {
  Copy& held = *machine().copy(copy);
  daemon_.send({daemon_.index(), number(held.note->facts.peer), 0, 0, Needed{held.note->move, copy}});
  later(question, [this] { ask(); });
}

void Serving::not_needed() {
  end();
}

void Serving::end() {
  daemon_.over(*this);
  if (Copy* held = machine().copy(copy)) machine().destroy(*held);
}

Fetching::Fetching(Daemon& daemon, Copy& held, std::unique_ptr<Wire> wire) : Actor(daemon), copy(held.number) {
  if (wire && wire->open())
    take(std::move(wire));
  else
    later(retry, [this] { connect(); });
}

void Fetching::take(std::unique_ptr<Wire> wire) {
  wire_ = std::move(wire);
  wire_->belongs_to(
      {.got = [this](const Body& body) { got(body); }, .broken = [this] { later(retry, [this] { connect(); }); }});
  later(silence, [this, mine = wire_.get()] {
    if (mine == wire_.get() && mine->open()) connect();
  });
}

void Fetching::connect() {
  const Copy& held = *machine().copy(copy);
  auto wire = daemon_.connect(number(held.note->facts.peer));
  wire->send(Resume{held.note->move});
  ++world().moves["drains resumed"];
  take(std::move(wire));
}

void Fetching::got(const Body& body) {
  Copy& held = *machine().copy(copy);
  // By a planted bug it is on its way again: what becomes of it is for that move to say.
  if (held.state != CopyState::running) return daemon_.over(*this);
  if (std::holds_alternative<Pushed>(body)) {
    held.owed = false;
    held.note.reset();
    world().say(daemon_.index(), held.pod, "the last owed page has come");
    wire_->send(Drained{});
    world().point(daemon_.index(), "drained");
    daemon_.over(*this);
  } else if (std::holds_alternative<Unknown>(body)) {
    world().say(daemon_.index(), held.pod, "what it is owed is lost: it is ended, with a report");
    ++world().moves["ended, source lost"];
    daemon_.over(*this);
    machine().destroy(held);
  }
}

}  // namespace godwit::sim
