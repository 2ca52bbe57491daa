#include "sim/custody.hpp"

#include "sim/world.hpp"

namespace godwit::sim {

using control::Claim;
using control::Fate;

Custody::Custody(Daemon& daemon, Copy& held, Settled settled)
    : Actor(daemon), copy(held.number), claim_(held.note->facts, daemon.world().bug()), settled_(std::move(settled)) {}

void Custody::ask(StoreAsk ask) {
  daemon_.store().ask(*this, std::move(ask), [this](const StoreAnswer* answer) {
    if (answer == nullptr) {
      if (unanswered) unanswered();
      return step(Claim::NoAnswer{});
    }
    world().point(daemon_.index(), "store's answer");
    if (answer->what == StoreAsk::What::swap) return step(Claim::Swapped{answer->yes});
    step(Claim::Seen{answer->record});
  });
}

void Custody::step(const Claim::Event& event) {
  const auto action = claim_.step(event);
  was_doubtful_ |= claim_.doubtful();
  const control::Owner& before = claim_.facts().before;
  std::visit(Overloaded{
                 [&](const Claim::Swap& swap) {
                   ask({0, StoreAsk::What::swap, swap.expected, swap.to});
                 },
                 [&](const Claim::Look&) {
                   ask({0, StoreAsk::What::get, before, {}});
                 },
                 [&](const Claim::Wait& wait) { later(wait.pause, [this] { step(Claim::Tick{}); }); },
                 [&](const Claim::Settle& end) { settle(end.fate); },
                 [](const Claim::Nothing&) {},
             },
             action);
}

void Custody::settle(Fate fate) {
  if (was_doubtful_) ++world().moves["doubts ended"];
  Copy& held = *machine().copy(copy);
  const bool source = claim_.facts().role == Claim::Role::source;
  world().say(daemon_.index(), held.pod, "{} of move {}: the pod is {}", source ? "source" : "destination",
              held.note->move, control::to_string(fate));
  // The owner hears it first: what it says to its peer goes before what is done next.
  const bool waits = source && fate == Fate::there;
  if (fate == Fate::here) {
    if (!held.owed) held.note.reset();
    machine().run(held);
  } else if (!waits) {
    machine().destroy(held);
  }
  daemon_.over(*this);
  settled_(fate);
}

}  // namespace godwit::sim
