#pragma once

#include <functional>
#include <optional>

#include "control/ownership.hpp"
#include "store/store.hpp"

namespace godwit::migrate {

/// The record as the machine sees it.
control::Owner owner_of(const store::Record&);

/// Asked whenever the store has given no answer: shows that the pod is in doubt, waits so long, and says what comes
/// next (Tick, or an operator's Resolved). Nothing: leave it for now, and go on later with Tick.
using InDoubt = std::function<std::optional<control::Claim::Event>(control::Time pause)>;

/// Carries out what the machine wants until the copy's fate is known. `before` is the record that it was begun with,
/// whole. Nothing when `in_doubt` wanted to leave. Blocks as long as the store does.
std::optional<control::Fate> carry_out(control::Claim&, const control::Claim::Event& first, const store::Record& before,
                                       store::Store&, const InDoubt& in_doubt);

}  // namespace godwit::migrate
