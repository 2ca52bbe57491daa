#include "control/negotiation.hpp"

#include <fmt/ranges.h>

#include <algorithm>

namespace godwit::control {

namespace {

constexpr Time longest_pause{1000};

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

}  // namespace

Negotiation::Actions Negotiation::give_up(Reason reason, std::string alternative) {
  over_ = true;
  GiveUp action{reason, {}, std::move(alternative)};
  for (const auto* refusals : {&plan_.refused, &refusals_})
    for (const auto& refusal : *refusals) action.texts.push_back(refusal.text);
  return {action};
}

Reason Negotiation::first_reason() const {
  if (!plan_.refused.empty()) return plan_.refused.front().reason;
  return refusals_.empty() ? Reason::unreachable : refusals_.front().reason;
}

void Negotiation::note(Reason reason, std::string text) {
  Refusal& refusal = refusals_.emplace_back();
  refusal.reason = reason;
  refusal.text = std::move(text);
}

Negotiation::Actions Negotiation::ask_next(Time now) {
  if (plan_.deadline && now >= *plan_.deadline) {
    note(Reason::late, "the time for this move was over before it had begun");
    return give_up(Reason::late);
  }
  if (next_ < plan_.candidates.size()) {
    asked_ = plan_.candidates[next_++];
    Send send{*asked_, plan_.ask};
    if (plan_.delegate)
      send.ask.elsewhere.assign(plan_.candidates.begin() + static_cast<std::ptrdiff_t>(next_), plan_.candidates.end());
    return {send};
  }
  if (busy_ && now < *begun_ + plan_.patience) {
    waiting_ = true;
    const Time until = now + pause_;
    pause_ = std::min(2 * pause_, longest_pause);
    return {Wait{plan_.deadline ? std::min(until, *plan_.deadline) : until}};
  }
  return ask_hint(now);
}

Negotiation::Actions Negotiation::ask_hint(Time now) {
  const bool time = !plan_.deadline || now < *plan_.deadline;
  if (time && next_hint_ < plan_.hints.size()) {
    asked_ = plan_.hints[next_hint_++];
    Send send{*asked_, plan_.ask};
    send.ask.probe = true;
    return {send};
  }
  return give_up(first_reason());
}

Negotiation::Actions Negotiation::refused(const Refusal& refusal, Time now) {
  busy_ |= refusal.reason == Reason::busy;
  refusals_.push_back(refusal);
  // Who has answered for a group has asked the others.
  if (plan_.delegate && refusal.reason != Reason::unreachable) next_ = plan_.candidates.size();
  return ask_next(now);
}

Negotiation::Actions Negotiation::settle(const Answer& answer, Time now) {
  const std::string by = *asked_;
  asked_.reset();
  const auto missing = missing_labels(answer.labels, plan_.ask.needs.labels);
  if (next_hint_ > 0) {
    const bool would = answer.yes && answer.node == by && missing.empty();
    return would ? give_up(first_reason(), by) : ask_hint(now);
  }
  if (!answer.yes) return refused({reason_named(answer.reason), answer.text}, now);
  const auto withdrawn = [&](Reason reason, std::string text) {
    Actions actions{Withdraw{answer.node}};
    for (auto& action : refused({reason, std::move(text)}, now)) actions.push_back(std::move(action));
    return actions;
  };
  // A node must not send a pod where its user didn't want it, whoever says so.
  const bool may = answer.node == by || (plan_.delegate && std::ranges::count(plan_.candidates, answer.node) > 0);
  if (!may)
    return refused({Reason::protocol, fmt::format("{} names {}, which wasn't asked for", by, answer.node)}, now);
  if (!missing.empty())
    return withdrawn(Reason::label, fmt::format("{} hasn't the label {}", answer.node, fmt::join(missing, ", ")));
  over_ = true;
  taken_ = answer.node;
  return {MoveOut{answer.node, answer.labels}};
}

std::vector<Negotiation::Action> Negotiation::step(const Event& event, Time now) {
  const auto begin = [&](const Begin&) -> Actions {
    if (begun_) return {};
    begun_ = now;
    return ask_next(now);
  };
  const auto answered = [&](const Answered& got) -> Actions {
    if (got.answer.move != plan_.ask.move) return {};
    if (over_ || asked_ != got.by) {
      const bool in_vain = got.answer.yes && got.answer.node != taken_ && plausible(got.answer);
      return in_vain ? Actions{Withdraw{got.answer.node}} : Actions{};
    }
    if (!plausible(got.answer)) {
      asked_.reset();
      return refused({Reason::protocol, fmt::format("{} gave a malformed answer", got.by)}, now);
    }
    return settle(got.answer, now);
  };
  const auto silent = [&](const NoAnswer& none) -> Actions {
    if (over_ || asked_ != none.by) return {};
    asked_.reset();
    if (next_hint_ > 0) return ask_hint(now);
    // It may have said yes, and the answer was lost.
    Actions actions{Withdraw{none.by}};
    for (auto& action : refused({Reason::unreachable, none.text}, now)) actions.push_back(std::move(action));
    return actions;
  };
  const auto tick = [&](const Tick&) -> Actions {
    if (over_ || !waiting_) return {};
    waiting_ = busy_ = false;
    next_ = 0;
    refusals_.clear();
    return ask_next(now);
  };
  const auto cancel = [&](const Cancel&) -> Actions {
    if (over_) return {};
    Actions actions;
    if (asked_ && next_hint_ == 0) actions.emplace_back(Withdraw{*asked_});
    refusals_.clear();
    plan_.refused.clear();
    note(Reason::cancelled, "cancelled");
    for (auto& action : give_up(Reason::cancelled)) actions.push_back(std::move(action));
    return actions;
  };
  return std::visit(Overloaded{begin, answered, silent, tick, cancel}, event);
}

Answer accept_for(Answer own, const Negotiation::MoveOut& out) {
  own.yes = true;
  own.node = out.to;
  own.labels = out.labels;
  own.reason.clear();
  own.text.clear();
  return own;
}

}  // namespace godwit::control
