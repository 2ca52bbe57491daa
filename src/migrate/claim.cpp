#include "migrate/claim.hpp"

#include "base/caught.hpp"
#include "base/fault.hpp"

namespace godwit::migrate {
namespace {

using control::Claim;

Claim::Event swap(const Claim::Swap& wanted, store::Record expected, store::Store& store) {
  expected.owner = wanted.expected.node;
  expected.epoch = wanted.expected.epoch;
  // Thrown or said: whether it was done can't be told from it.
  const auto moved = caught([&] { return store.move(expected, wanted.to); });
  if (!moved) return Claim::NoAnswer{};
  return Claim::Swapped{*moved};
}

Claim::Event look(const std::string& pod, store::Store& store) {
  const auto record = caught([&] { return store.get(pod); });
  if (!record) return Claim::NoAnswer{};
  if (!*record) return Claim::Seen{};
  return Claim::Seen{owner_of(**record)};
}

}  // namespace

control::Owner owner_of(const store::Record& record) {
  return {.pod_id = record.id, .node = record.owner, .epoch = record.epoch};
}

std::optional<control::Fate> carry_out(Claim& claim, const Claim::Event& first, const store::Record& before,
                                       store::Store& store, const InDoubt& in_doubt) {
  std::optional<Claim::Event> event = first;
  while (!claim.fate() && event) {
    const auto action = claim.step(*event);
    if (const auto* wanted = std::get_if<Claim::Swap>(&action)) {
      fault::reach("claim.swap");
      event = swap(*wanted, before, store);
      fault::reach("claim.swapped");
    } else if (std::holds_alternative<Claim::Look>(action)) {
      fault::reach("claim.look");
      event = look(before.pod, store);
    } else if (const auto* wait = std::get_if<Claim::Wait>(&action)) {
      event = in_doubt(wait->pause);
    } else {
      event.reset();
    }
  }
  return claim.fate();
}

}  // namespace godwit::migrate
