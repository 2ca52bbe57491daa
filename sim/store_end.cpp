#include "sim/store_end.hpp"

#include <algorithm>

#include "sim/world.hpp"

namespace godwit::sim {

void StoreEnd::ask(Actor& asker, StoreAsk ask, Done done) {
  World& world = daemon_.world();
  ask.ticket = world.next_number();
  pending_[ask.ticket] = {&asker, asker.alive(), ask.what, std::move(done)};
  const auto ticket = ask.ticket;
  daemon_.send({daemon_.index(), world.size(), 0, 0, std::move(ask)});
  asker.later(patience, [this, ticket] {
    auto pending = pending_.extract(ticket);
    if (pending.empty()) return;
    late_[ticket] = pending.mapped().asker;
    pending.mapped().done(nullptr);
  });
}

void StoreEnd::receive(const StoreAnswer& answer) {
  auto pending = pending_.extract(answer.ticket);
  if (const auto late = late_.find(answer.ticket); late != late_.end() && daemon_.world().bug(Bug::late_answer)) {
    const auto next = std::ranges::find_if(pending_, [&](const auto& entry) {
      return entry.second.asker == late->second && entry.second.what == answer.what;
    });
    if (next != pending_.end()) pending = pending_.extract(next);
  }
  if (!pending.empty() && !pending.mapped().alive.expired()) pending.mapped().done(&answer);
}

}  // namespace godwit::sim
