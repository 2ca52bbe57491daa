#include "control/admission.hpp"

#include <fmt/ranges.h>

#include <algorithm>

namespace godwit::control {

namespace {

/// Of what is needed, what a promise gives away. A machine stays the same for all.
Needs to_keep(Needs needs) {
  needs.machine = {};
  return needs;
}

}  // namespace

void Admission::expire(Time now) {
  std::erase_if(promises_, [&](const auto& entry) { return entry.second.until && *entry.second.until <= now; });
}

std::vector<Refusal> Admission::refusals(const Incoming& migration, const std::string& pod_id, const Needs& needs,
                                         const Room& room) const {
  std::vector<Refusal> no;
  const bool at_home = needs.home == node_;
  if (policy_.draining) no.push_back({Reason::draining, fmt::format("{} is being emptied", node_)});
  if (!policy_.guests && !at_home) no.push_back({Reason::owner, fmt::format("the owner of {} wants no guests", node_)});
  if (const auto missing = missing_labels(policy_.labels, needs.labels); !missing.empty())
    no.push_back({Reason::label, fmt::format("{} hasn't the label {}", node_, fmt::join(missing, ", "))});
  for (auto& text : lacking(node_, room.machine, needs.machine)) no.push_back({Reason::machine, std::move(text)});

  std::uint64_t memory = 0, descriptors = 0, others = 0;
  double processors = 0;
  for (const auto& [other, promise] : promises_) {
    if (other == migration) continue;
    memory += promise.needs.memory - std::min(promise.used, promise.needs.memory);
    descriptors += promise.needs.descriptors;
    // What has arrived is here, and yet under way until its last page has come.
    if (!room.pods.contains(promise.pod_id)) {
      ++others;
      processors += promise.needs.processors;
    }
    // Only its owner sends a pod: two movers for one pod are two ideas of who that is, and the record will tell.
    if (promise.pod_id == pod_id)
      no.push_back({Reason::busy, fmt::format("{} is being taken in from {} already", pod_id, other.from)});
    else
      for (const auto& address : promise.needs.addresses)
        if (std::ranges::count(needs.addresses, address) > 0)
          no.push_back(
              {Reason::address, fmt::format("its address {} is promised to another pod of {}", address, other.from)});
  }
  const auto left = [](std::uint64_t all, std::uint64_t promised) { return all - std::min(all, promised); };
  constexpr std::uint64_t mebibyte = 1 << 20;
  if (needs.memory > left(room.memory, memory))
    no.push_back({Reason::memory,
                  fmt::format("{} MiB of memory are needed, {} has {} MiB to give{}",
                              (needs.memory + mebibyte - 1) / mebibyte, node_, left(room.memory, memory) / mebibyte,
                              memory == 0 ? "" : " beyond what is promised to others")});
  if (const double free = std::max(0.0, room.processors - processors); needs.processors > free)
    no.push_back({Reason::processors, fmt::format("it may use {} processors, {} has {} that no other pod was given",
                                                  needs.processors, node_, free)});
  if (needs.descriptors > left(room.descriptors, descriptors))
    no.push_back({Reason::descriptors, fmt::format("it has {} open descriptors, the daemon on {} can hold {} more",
                                                   needs.descriptors, node_, left(room.descriptors, descriptors))});
  if (policy_.pods != 0 && room.pods.size() + others >= policy_.pods)
    no.push_back({Reason::quota, fmt::format("{} takes {} pods at most", node_, policy_.pods)});
  no.insert(no.end(), room.objections.begin(), room.objections.end());
  return no;
}

Answer Admission::consider(const Ask& ask, const Room& room, Time now) {
  expire(now);
  Answer answer{.move = ask.move, .labels = policy_.labels};
  const auto refuse = [&](Reason reason, std::string text) {
    answer.reason = to_string(reason);
    answer.text = std::move(text);
    return answer;
  };
  if (ask.version != protocol)
    return refuse(Reason::protocol, fmt::format("{} speaks version {} of the starters' protocol, {} version {}",
                                                ask.from, ask.version, node_, protocol));
  if (!plausible(ask)) return refuse(Reason::protocol, "the request is malformed");
  if (ask.from == node_) return refuse(Reason::protocol, fmt::format("it is on {} already", node_));
  const Incoming migration{ask.from, ask.move};
  if (const auto known = promises_.find(migration); known != promises_.end()) {
    if (known->second.pod_id != ask.pod_id)
      return refuse(Reason::protocol, fmt::format("move {} is another pod's", ask.move));
    if (!known->second.until) return refuse(Reason::busy, "this very migration is under way");
  }
  for (const auto& [move, ours] : asking_)
    if (ours.peer == ask.from && ours.pod_id < ask.pod_id && !ask.probe)
      return refuse(Reason::busy, fmt::format("{} has just asked {} to take another pod", node_, ask.from));
  if (const auto no = refusals(migration, ask.pod_id, ask.needs, room); !no.empty()) {
    std::string text;
    for (const auto& refusal : no) add_text(text, refusal.text);
    return refuse(no.front().reason, std::move(text));
  }
  if (!ask.probe) {
    if (promises_.size() >= most_promises && !promises_.contains(migration))
      return refuse(Reason::busy, fmt::format("{} has promised room to {} migrations", node_, promises_.size()));
    promises_[migration] = {ask.pod_id, to_keep(ask.needs), now + promise_time};
  }
  answer.yes = true;
  answer.node = node_;
  return answer;
}

std::vector<Refusal> Admission::decide(const Incoming& migration, const std::string& pod_id, const Needs& needs,
                                       const Room& room, Time now) {
  expire(now);
  const auto known = promises_.find(migration);
  if (known != promises_.end() && (known->second.pod_id != pod_id || !known->second.until))
    return {{Reason::protocol, fmt::format("move {} is another one's", migration.id)}};
  auto no = refusals(migration, pod_id, needs, room);
  if (no.empty() && known == promises_.end() && promises_.size() >= most_promises)
    no.push_back({Reason::busy, fmt::format("{} has promised room to {} migrations", node_, promises_.size())});
  if (!no.empty()) {
    promises_.erase(migration);
    return no;
  }
  auto& promise = promises_[migration];
  promise.pod_id = pod_id;
  promise.needs = to_keep(needs);
  promise.until.reset();
  return {};
}

void Admission::used(const Incoming& migration, std::uint64_t bytes) {
  if (const auto known = promises_.find(migration); known != promises_.end()) known->second.used = bytes;
}

void Admission::end(const Incoming& migration) {
  promises_.erase(migration);
}

void Admission::withdraw(const Incoming& migration) {
  const auto known = promises_.find(migration);
  if (known != promises_.end() && known->second.until) promises_.erase(known);
}

void Admission::asking(const std::string& move, const std::string& pod_id, const std::string& peer) {
  asking_[move] = {pod_id, peer};
}

void Admission::asked(const std::string& move) {
  asking_.erase(move);
}

const std::map<Incoming, Admission::Promise>& Admission::promises(Time now) {
  expire(now);
  return promises_;
}

}  // namespace godwit::control
