#include "control/ownership.hpp"

#include <algorithm>

namespace godwit::control {
namespace {

constexpr Time longest_pause{1000};

}  // namespace

const char* to_string(Fate fate) {
  switch (fate) {
    case Fate::here:
      return "here";
    case Fate::there:
      return "there";
    case Fate::gone:
      return "gone";
  }
  return "?";
}

const std::string& Claim::source() const {
  return facts_.role == Role::source ? facts_.node : facts_.peer;
}

Claim::Action Claim::ask(Asked what) {
  asked_ = what;
  switch (what) {
    case Asked::commit:
      return Swap{facts_.before, facts_.peer};
    case Asked::fence:
      return Swap{facts_.before, source()};
    case Asked::look:
      return Look{};
    case Asked::nothing:
      break;
  }
  return Nothing{};
}

Claim::Action Claim::settle(Fate fate) {
  asked_ = Asked::nothing;
  waiting_ = doubtful_ = false;
  fate_ = fate;
  return Settle{fate};
}

/// The record as it is. What it was when a commit was asked for may still become `committed`: so it is fenced.
Claim::Action Claim::judge(const std::optional<Owner>& record) {
  const Owner& before = facts_.before;
  if (!record || record->pod_id != before.pod_id) return settle(Fate::gone);
  if (*record == before) return ask(Asked::fence);
  if (record->epoch != before.epoch + 1) return settle(Fate::gone);
  if (record->node == facts_.node) return settle(Fate::here);
  return settle(record->node == facts_.peer ? Fate::there : Fate::gone);
}

Claim::Action Claim::step(const Event& event) {
  if (fate_) return Nothing{};
  return std::visit([this](const auto& happened) { return on(happened); }, event);
}

Claim::Action Claim::on(const Commit&) {
  if (facts_.role != Role::source || asked_ != Asked::nothing || waiting_) return Nothing{};
  return ask(Asked::commit);
}

Claim::Action Claim::on(const Doubt&) {
  if (asked_ != Asked::nothing || waiting_) return Nothing{};
  return ask(Asked::look);
}

Claim::Action Claim::on(const Told& told) {
  // A source believes nobody: it has asked for the commit itself.
  if (facts_.role != Role::destination) return Nothing{};
  return settle(told.committed ? Fate::here : Fate::there);
}

Claim::Action Claim::on(const Swapped& swapped) {
  if (asked_ != Asked::commit && asked_ != Asked::fence) return Nothing{};
  doubtful_ = false;
  // Somebody was first. Who, the record says.
  if (!swapped.yes) return ask(Asked::look);
  if (asked_ == Asked::commit) return settle(Fate::there);
  return settle(facts_.role == Role::source ? Fate::here : Fate::there);
}

Claim::Action Claim::on(const Seen& seen) {
  if (asked_ != Asked::look) return Nothing{};
  doubtful_ = false;
  return judge(seen.record);
}

Claim::Action Claim::on(const NoAnswer&) {
  if (asked_ == Asked::nothing) return Nothing{};
  asked_ = Asked::nothing;
  waiting_ = doubtful_ = true;
  pause_ = std::min(pause_ * 2, longest_pause);
  return Wait{pause_};
}

Claim::Action Claim::on(const Tick&) {
  if (!waiting_) return Nothing{};
  waiting_ = false;
  return ask(Asked::look);
}

Claim::Action Claim::on(const Resolved& resolved) {
  // Only where there is doubt: a store that can be asked decides.
  if (!doubtful_) return Nothing{};
  return settle(resolved.here ? Fate::here : Fate::there);
}

}  // namespace godwit::control
