#include "sim/store.hpp"

#include "sim/world.hpp"

namespace godwit::sim {

const control::Owner* Store::record(const std::string& pod) const {
  const auto found = records_.find(pod);
  return found == records_.end() ? nullptr : &found->second;
}

StoreAnswer Store::carry_out(const StoreAsk& ask) {
  StoreAnswer answer{ask.ticket, ask.what, false, {}};
  const auto found = records_.find(ask.expected.pod_id);
  const bool there = found != records_.end();
  const bool same = there && (found->second == ask.expected ||
                              (world_.bug(Bug::owner_compared_alone) && found->second.node == ask.expected.node));
  switch (ask.what) {
    case StoreAsk::What::get:
      if (there) answer.record = found->second;
      answer.yes = true;
      break;
    case StoreAsk::What::create:
      answer.yes = !there;
      if (!there) records_[ask.expected.pod_id] = ask.expected;
      break;
    case StoreAsk::What::swap:
      answer.yes = same;
      if (same) {
        const control::Owner next{ask.expected.pod_id, ask.to, ask.expected.epoch + 1};
        world_.ledger.recorded(found->second, next);
        world_.say(-1, number(next.pod_id), "the record is {}'s, epoch {}", next.node, next.epoch);
        found->second = next;
      }
      break;
    case StoreAsk::What::remove:
      answer.yes = same;
      if (same) records_.erase(found);
      break;
  }
  return answer;
}

void Store::receive(const Message& message) {
  const auto* ask = std::get_if<StoreAsk>(&message.body);
  if (ask == nullptr || outage_ == Outage::deaf) return;
  if (outage_ == Outage::parked) return parked_.push_back(message);
  const StoreAnswer answer = carry_out(*ask);
  if (outage_ == Outage::dumb) return;
  world_.network.send({message.to, message.from, 0, 0, answer}, [] { return true; });
}

void Store::end() {
  outage_ = Outage::none;
  for (const auto& message : std::exchange(parked_, {})) receive(message);
}

}  // namespace godwit::sim
