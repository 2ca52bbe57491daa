#include "sim/departure.hpp"

#include "sim/custody.hpp"
#include "sim/world.hpp"

namespace godwit::sim {

using control::Claim;
using control::Fate;
using control::Negotiation;
using control::Time;

namespace {

constexpr Time answer_patience{5'000}, freeze_patience{2'000}, running_patience{30'000};

}  // namespace

Departure::Departure(Daemon& daemon, Copy& leaving, Wish wish)
    : Actor(daemon),
      copy(leaving.number),
      wish_(std::move(wish)),
      pod_(leaving.pod),
      move_("m" + std::to_string(daemon.world().next_number())) {}

Copy& Departure::held() {
  return *machine().copy(copy);
}

control::Needs Departure::needs() {
  control::Needs needs = held().needs;
  needs.machine = machine().hardware;
  if (world().bug(Bug::features_unsaid)) needs.machine.cpu_flags.clear();
  return needs;
}

/// With a limit for how long nothing may be heard in this phase.
void Departure::enter(Phase phase, Time patience) {
  phase_ = phase;
  later(patience, [this, phase] {
    if (phase_ == phase) broken();
  });
}

void Departure::begin() {
  ++world().moves["begun"];
  if (wish_.deadline) later(*wish_.deadline - machine().now(), [this] { cancel(); });
  daemon_.store().ask(*this, {0, StoreAsk::What::get, {pod_name(pod_), {}, 0}, {}}, [this](const StoreAnswer* answer) {
    if (phase_ != Phase::asking) return;
    if (answer == nullptr) return give_up("the store doesn't answer");
    if (!answer->record || answer->record->node != node_name(daemon_.index()))
      return give_up("the record is another's");
    found(*answer->record);
  });
}

void Departure::found(const control::Owner& record) {
  before_ = record;
  phase_ = Phase::searching;
  Negotiation::Plan plan{.ask = {.move = move_,
                                 .pod = pod_name(pod_),
                                 .pod_id = pod_name(pod_),
                                 .epoch = record.epoch,
                                 .from = node_name(daemon_.index()),
                                 .needs = needs()},
                         .candidates = wish_.candidates,
                         .deadline = wish_.deadline};
  for (int i = 0; i < 2; ++i) {
    const auto hint = static_cast<int>(world().random.below(static_cast<std::uint64_t>(world().size())));
    if (hint != daemon_.index()) plan.hints.push_back(node_name(hint));
  }
  search_ = daemon_.starter().search(std::move(plan), [this](const Starter::Outcome& outcome) { agreed(outcome); });
}

void Departure::agreed(const Starter::Outcome& outcome) {
  if (const auto* up = std::get_if<Negotiation::GiveUp>(&outcome))
    return give_up("refused: " + std::string(control::to_string(up->reason)));
  to_ = number(std::get<Negotiation::MoveOut>(outcome).to);
  world().say(daemon_.index(), pod_, "move {} to {} is agreed", move_, node_name(to_));
  wire_ = daemon_.connect(to_);
  wire_->belongs_to({.got = [this](const Body& body) { got(body); }, .broken = [this] { broken(); }});
  wire_->send(Hello{move_, pod_, needs(), before_, wish_.postcopy});
  enter(Phase::greeting, answer_patience);
  world().point(daemon_.index(), "hello");
}

void Departure::got(const Body& body) {
  if (std::holds_alternative<Welcome>(body) && phase_ == Phase::greeting) {
    phase_ = Phase::copying;
    const Time half(world().random.between(1, 1'500));
    later(half, [this] {
      if (phase_ == Phase::copying) wire_->send(Pages{});
    });
    later(2 * half, [this] { freeze(); });
  } else if (const auto* refused = std::get_if<Refused>(&body); refused && phase_ == Phase::greeting) {
    give_up("refused late: " + refused->text);
  } else if (std::holds_alternative<Abort>(body)) {
    broken();
  } else if (std::holds_alternative<Rebuilt>(body)) {
    rebuilt_ = true;
    if (phase_ == Phase::pinned) commit();
  } else if (std::holds_alternative<Running>(body) && phase_ == Phase::handed_over) {
    finish();
  }
}

void Departure::broken() {
  if (phase_ == Phase::handed_over) return finish();
  if (phase_ != Phase::committing && phase_ != Phase::over) give_up("the peer is lost");
}

void Departure::cancel() {
  if (phase_ == Phase::searching) return daemon_.starter().cancel(search_);
  if (phase_ == Phase::committing && !world().bug(Bug::cancel_committing)) return;
  if (phase_ != Phase::handed_over && phase_ != Phase::over) give_up("cancelled");
}

void Departure::freeze() {
  if (phase_ != Phase::copying) return;
  machine().stop(held());
  enter(Phase::freezing, freeze_patience);
  wire_->send(State{held().stamp, wish_.postcopy ? copy : 0, held().owed || held().holed});
  world().say(daemon_.index(), pod_, "is frozen, and its state sent");
  world().point(daemon_.index(), "freeze");
  later(Time(world().random.between(0, 20)), [this] { pin(); });
}

void Departure::pin() {
  if (phase_ != Phase::freezing) return;
  const Claim::Facts facts{Claim::Role::source, node_name(daemon_.index()), node_name(to_), before_};
  held().note = Note{facts, move_, wish_.postcopy};
  machine().pin(held());
  enter(Phase::pinned, freeze_patience);
  world().point(daemon_.index(), "pinned");
  if (rebuilt_) commit();
}

void Departure::commit() {
  phase_ = Phase::committing;
  // Both stand in the freezer. From here on only its claim says what becomes of this one.
  Custody& custody = daemon_.keep(held(), [this](Fate fate) { settled(fate); });
  if (world().bug(Bug::abort_in_doubt)) custody.unanswered = [this] { wire_->send(Abort{}); };
  custody.step(Claim::Commit{});
  world().point(daemon_.index(), "commit");
}

void Departure::settled(Fate fate) {
  if (phase_ == Phase::over) return;
  if (fate != Fate::there) {
    if (fate == Fate::here) wire_->send(Abort{});
    ++world().moves["failed: lost the commit"];
    phase_ = Phase::over;
    return daemon_.over(*this);
  }
  ++world().moves["committed"];
  wire_->send(Go{pod_});
  world().point(daemon_.index(), "go");
  if (wish_.postcopy && !world().bug(Bug::early_end)) {
    phase_ = Phase::over;
    daemon_.serve(held(), std::move(wire_));
    return daemon_.over(*this);
  }
  enter(Phase::handed_over, running_patience);
  if (!wire_->open() || world().bug(Bug::early_end)) finish();
}

void Departure::finish() {
  phase_ = Phase::over;
  machine().destroy(held());
  daemon_.over(*this);
}

void Departure::give_up(const std::string& why) {
  ++world().moves["failed: " + why.substr(0, why.find(':'))];
  world().say(daemon_.index(), pod_, "move {} is given up: {}", move_, why);
  if (phase_ == Phase::committing) daemon_.drop_custody(copy);
  phase_ = Phase::over;
  if (wire_) wire_->send(Abort{});
  if (held().state != CopyState::running) {
    if (!held().owed) held().note.reset();
    machine().run(held());
  }
  daemon_.over(*this);
}

}  // namespace godwit::sim
