#include "sim/suspect.hpp"

namespace godwit::sim {

using control::Claim;
using control::Fate;

Claim::Action Suspect::step(const Claim::Event& event) {
  if (ended_) return Claim::Nothing{};
  const auto end = [this](Fate fate) -> Claim::Action {
    ended_ = true;
    return Claim::Settle{fate};
  };
  const auto& facts = claim_.facts();
  const bool source = facts.role == Claim::Role::source;
  if (bug_ == Bug::source_runs_on && source && std::holds_alternative<Claim::NoAnswer>(event)) return end(Fate::here);
  if (bug_ == Bug::destination_runs_on && !source && std::holds_alternative<Claim::Doubt>(event))
    return end(Fate::here);
  if (const auto* seen = std::get_if<Claim::Seen>(&event); bug_ == Bug::any_epoch && seen)
    if (seen->record && seen->record->node == facts.node) return end(Fate::here);
  auto action = claim_.step(event);
  if (const auto* swap = std::get_if<Claim::Swap>(&action); bug_ == Bug::no_fence && swap)
    if (swap->to == facts.before.node) return end(source ? Fate::here : Fate::there);
  return action;
}

}  // namespace godwit::sim
