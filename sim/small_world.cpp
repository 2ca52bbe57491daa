#include "sim/small_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <string_view>

namespace godwit::sim::small {

using control::Owner;

namespace {

constexpr const char* pod = "pod";

std::string name_of(Byte node) {
  return std::string(1, static_cast<char>('a' + node));
}

Byte node_named(const std::string& name) {
  return static_cast<Byte>(name[0] - 'a');
}

template <typename T, std::size_t N>
void put(Bag<T, N>& bag, const T& item) {
  if (bag.size == N) throw std::length_error("the small world's bag is too small");
  bag.items[bag.size++] = item;
  std::sort(bag.items.begin(), bag.items.begin() + bag.size);
}

template <typename T, std::size_t N>
T take(Bag<T, N>& bag, std::size_t at) {
  const T item = bag.items[at];
  std::move(bag.items.begin() + static_cast<std::ptrdiff_t>(at) + 1, bag.items.begin() + bag.size,
            bag.items.begin() + static_cast<std::ptrdiff_t>(at));
  bag.items[--bag.size] = T{};
  return item;
}

/// Nobody waits any more for the answers to what was asked for these. A swap may be carried out all the same.
template <typename Whose>
void abandon(State& state, Whose whose) {
  for (std::size_t i = state.requests.size; i-- > 0;) {
    if (!whose(state.requests.items[i])) continue;
    Request request = take(state.requests, i);
    request.orphan = 1;
    if (request.what == static_cast<Byte>(What::swap)) put(state.requests, request);
  }
  for (std::size_t i = state.answers.size; i-- > 0;)
    if (whose(state.answers.items[i])) take(state.answers, i);
}

void abandon(State& state, Byte node, Byte slot) {
  abandon(state, [&](const auto& item) { return item.node == node && item.slot == slot; });
}

}  // namespace

Byte Model::known(const Suspect& claim) {
  const auto [found, fresh] = numbers_.try_emplace(claim, static_cast<Byte>(claims_.size()));
  if (fresh) claims_.push_back(claim);
  if (claims_.size() >= none) throw std::length_error("more different claims than a byte can tell apart");
  return found->second;
}

Claim::Facts Model::facts(const State& state, const Copy& copy) const {
  const Move& move = state.moves[copy.move];
  const bool source = copy.role == 0;
  return {source ? Claim::Role::source : Claim::Role::destination, name_of(source ? move.from : move.to),
          name_of(source ? move.to : move.from), Owner{pod, name_of(move.from), move.epoch}};
}

void Model::say(State& state, Say what, Byte move, Byte fresh) {
  put(state.messages, Message{static_cast<Byte>(what), move, fresh});
}

/// The pod runs in this copy: no other is what it is any more.
void Model::go_on(State& state, Copy& copy) {
  for (auto& slots : state.copies)
    for (auto& other : slots)
      if (other.run == Run::running) throw Broken{"two copies run"};
  if (copy.fresh == 0) throw Broken{"a copy runs that the pod has gone on from elsewhere"};
  for (auto& slots : state.copies)
    for (auto& other : slots) other.fresh = 0;
  for (std::size_t i = 0; i < state.messages.size; ++i) state.messages.items[i].fresh = 0;
  std::sort(state.messages.items.begin(), state.messages.items.begin() + state.messages.size);
  const Byte owed = copy.owed, move = copy.move;
  copy = {.run = Run::running, .fresh = 1};
  state.lost = 0;
  if (owed == 0) {
    state.excused = 0;
    return;
  }
  copy.owed = copy.noted = copy.role = 1;
  copy.move = move;
}

/// The machine that owns the pod was lost, before or after it was made the owner.
bool Model::excused(const State& state) {
  return state.excused != 0 || (state.lost >> state.owner & 1) != 0;
}

bool Model::owed_by(const State& state, Byte move) {
  return std::ranges::any_of(state.copies, [&](const auto& slots) {
    return std::ranges::any_of(slots, [&](const Copy& copy) {
      return copy.run != Run::absent && copy.fresh != 0 && copy.owed != 0 && copy.move == move;
    });
  });
}

void Model::destroy(State& state, Copy& copy) {
  const Copy was = copy;
  copy = {};
  if (was.role == 0 && owed_by(state, was.move)) throw Broken{"a copy is destroyed that still owes pages"};
  if (was.fresh == 0 || excused(state)) return;
  for (const auto& slots : state.copies)
    for (const auto& other : slots)
      if (other.run != Run::absent && other.fresh != 0) return;
  throw Broken{"the last copy is destroyed"};
}

Copy* Model::find(State& state, Byte node, Byte move, Byte role) {
  for (auto& copy : state.copies[node])
    if (copy.run != Run::absent && copy.move == move && copy.role == role) return &copy;
  return nullptr;
}

void Model::settle(State& state, Byte node, Byte slot, Fate fate) {
  Copy& copy = state.copies[node][slot];
  copy.claim = none;
  copy.waits = 0;
  const Byte move = copy.move;
  const bool source = copy.role == 0;
  if (fate == Fate::here) {
    go_on(state, copy);
    if (source) say(state, Say::abort, move);
  } else if (source && fate == Fate::there) {
    say(state, Say::go, move);
    copy.departing = 0;
    if (world_.postcopy && bug_ != Bug::early_end)
      copy.serving = copy.noted = 1;
    else
      destroy(state, copy);
  } else {
    destroy(state, copy);
  }
}

/// One event for a copy's claim, and what it wants.
void Model::claim(State& state, Byte node, Byte slot, const Claim::Event& event) {
  Copy& copy = state.copies[node][slot];
  Suspect suspect = claims_[copy.claim];
  const auto action = suspect.step(event);
  copy.claim = known(suspect);
  if (!std::holds_alternative<Claim::Nothing>(action)) copy.waits = 0;
  if (const auto* swap = std::get_if<Claim::Swap>(&action)) {
    put(state.requests, Request{node, slot, 0, static_cast<Byte>(What::swap), node_named(swap->expected.node),
                                static_cast<Byte>(swap->expected.epoch), node_named(swap->to)});
  } else if (std::holds_alternative<Claim::Look>(action)) {
    put(state.requests, Request{node, slot, 0, static_cast<Byte>(What::look), 0, 0, 0});
  } else if (std::holds_alternative<Claim::Wait>(action)) {
    copy.waits = 1;
    if (bug_ == Bug::abort_in_doubt && copy.role == 0) say(state, Say::abort, copy.move);
  } else if (const auto* settled = std::get_if<Claim::Settle>(&action)) {
    abandon(state, node, slot);
    settle(state, node, slot, settled->fate);
  }
}

template <typename Change>
void Model::happens(const State& from, bool fault, std::string what, Change change) {
  Step& step = steps_.emplace_back(Step{from, std::move(what), fault});
  change(step.state);
}

void Model::each_move(const State& now, Byte node, Byte slot) {
  const Copy& copy = now.copies[node][slot];
  const bool free = copy.run == Run::running && (copy.owed == 0 || bug_ == Bug::moves_on_owed);
  if (free && now.made < world_.moves && now.owner == node) {
    for (Byte to = 0; to < world_.nodes; ++to) {
      if (to == node) continue;
      happens(now, false, fmt::format("{} freezes the pod for move {} to {}", name_of(node), now.made, name_of(to)),
              [&](State& next) {
                const Byte move = next.made++;
                next.moves[move] = {node, to, next.epoch};
                Copy& mine = next.copies[node][slot];
                mine = {.run = Run::stopped, .fresh = 1, .departing = 1, .role = 0, .move = move};
                say(next, Say::state, move, 1);
              });
    }
  }
  if (copy.departing == 0) return;
  if (copy.run == Run::stopped)
    happens(now, false, name_of(node) + " has pinned it", [&](State& next) {
      Copy& mine = next.copies[node][slot];
      mine.run = Run::pinned;
      mine.noted = bug_ != Bug::noted_late;
    });
  if (copy.claim == none || bug_ == Bug::cancel_committing)
    happens(now, false, name_of(node) + " gives the move up and goes on", [&](State& next) {
      const Byte move = copy.move;
      abandon(next, node, slot);
      go_on(next, next.copies[node][slot]);
      say(next, Say::abort, move);
    });
}

void Model::each_claim(const State& now, Byte node, Byte slot) {
  const Copy& copy = now.copies[node][slot];
  if (copy.claim == none) return;
  if (copy.role == 1 && bug_ != Bug::never_doubts)
    happens(now, false, name_of(node) + " hears nothing more of its source",
            [&](State& next) { claim(next, node, slot, Claim::Doubt{}); });
  if (copy.waits != 0)
    happens(now, false, name_of(node) + " has waited", [&](State& next) { claim(next, node, slot, Claim::Tick{}); });
}

void Model::deliver(State& state, const Message& message) {
  const Move& move = state.moves[message.move];
  const auto told = [&](bool committed) {
    for (Byte slot = 0; slot < 2; ++slot) {
      const Copy& copy = state.copies[move.to][slot];
      const bool meant = copy.move == message.move || (bug_ == Bug::old_go && committed);
      if (copy.claim != none && copy.role == 1 && meant) return claim(state, move.to, slot, Claim::Told{committed});
    }
  };
  switch (static_cast<Say>(message.say)) {
    case Say::state: {
      auto& slots = state.copies[move.to];
      const bool empty = std::ranges::all_of(slots, [](const Copy& copy) { return copy.run == Run::absent; });
      const auto slot = std::ranges::find(slots, Run::absent, &Copy::run);
      const bool frozen =
          std::ranges::all_of(slots, [](const Copy& copy) { return copy.run == Run::absent || copy.claim != none; });
      if (slot == slots.end() || !(empty || (bug_ == Bug::second_copy && frozen))) return;
      *slot = {.run = Run::pinned,
               .fresh = message.fresh,
               .owed = world_.postcopy,
               .noted = 1,
               .role = 1,
               .move = message.move};
      slot->claim = known(Suspect(facts(state, *slot), bug_));
      return say(state, Say::rebuilt, message.move);
    }
    case Say::rebuilt: {
      Copy* copy = find(state, move.from, message.move, 0);
      if (copy == nullptr || copy->departing == 0 || copy->claim != none) return;
      copy->claim = known(Suspect(facts(state, *copy), bug_));
      return claim(state, move.from, static_cast<Byte>(copy - state.copies[move.from].data()), Claim::Commit{});
    }
    case Say::go:
      return told(true);
    case Say::abort:
      return told(false);
    case Say::drained:
      if (Copy* copy = find(state, move.from, message.move, 0); copy != nullptr && copy->serving != 0)
        destroy(state, *copy);
      return;
  }
}

void Model::each_message(const State& now) {
  static constexpr std::array<std::string_view, 5> names{"state", "rebuilt", "go", "abort", "drained"};
  for (std::size_t i = 0; i < now.messages.size; ++i) {
    const Message message = now.messages.items[i];
    const Move& move = now.moves[message.move];
    const auto say = static_cast<Say>(message.say);
    const Byte to = say == Say::rebuilt || say == Say::drained ? move.from : move.to;
    const std::string name = fmt::format("the {} of move {}", names[message.say], message.move);
    happens(now, true, name + " is lost", [&](State& next) { take(next.messages, i); });
    if (now.up[to] == 0) continue;
    // It looks at its connection when it stands in the freezer.
    const auto is_stopped = [&](const Copy& copy) { return copy.run == Run::stopped && copy.move == message.move; };
    if (say == Say::rebuilt && std::ranges::any_of(now.copies[to], is_stopped)) continue;
    happens(now, false, fmt::format("{} gets {}", name_of(to), name), [&](State& next) {
      take(next.messages, i);
      deliver(next, message);
    });
    // A copy is built once, over a connection of its own. What is said about it may come again.
    if (now.doubles < world_.doubles && say != Say::state)
      happens(now, true, fmt::format("{} gets {}, which will come again", name_of(to), name), [&](State& next) {
        ++next.doubles;
        deliver(next, message);
      });
  }
}

void Model::carry_out(State& state, const Request& request) {
  Answer answer{request.node, request.slot, request.orphan, request.what, 0, 0, 0};
  if (request.what == static_cast<Byte>(What::swap)) {
    const bool same_epoch = request.epoch == state.epoch || bug_ == Bug::owner_compared_alone;
    if (request.owner == state.owner && same_epoch) {
      if (request.epoch + 1 <= state.epoch) throw Broken{"the record's epoch goes back"};
      state.owner = request.to;
      state.epoch = static_cast<Byte>(request.epoch + 1);
      answer.yes = 1;
    }
  } else {
    answer.owner = state.owner;
    answer.epoch = state.epoch;
  }
  if (answer.late != 0 && (bug_ != Bug::late_answer || answer.what != static_cast<Byte>(What::swap))) return;
  if (state.copies[answer.node][answer.slot].claim != none) put(state.answers, answer);
}

void Model::each_store(const State& now) {
  for (std::size_t i = 0; i < now.requests.size; ++i) {
    const Request request = now.requests.items[i];
    const std::string name = request.what == static_cast<Byte>(What::look)
                                 ? name_of(request.node) + "'s look"
                                 : fmt::format("{}'s swap {}@{} to {}", name_of(request.node), name_of(request.owner),
                                               request.epoch, name_of(request.to));
    happens(now, false, "the store carries out " + name, [&](State& next) {
      take(next.requests, i);
      carry_out(next, request);
    });
    const bool swap = request.what == static_cast<Byte>(What::swap);
    if (now.doubles < world_.doubles && request.orphan == 0 && swap)
      happens(now, true, fmt::format("the store carries out {}, and will once more", name), [&](State& next) {
        ++next.doubles;
        Request again = take(next.requests, i);
        again.orphan = 1;
        put(next.requests, again);
        carry_out(next, request);
      });
    if (request.orphan != 0) happens(now, true, name + " never arrives", [&](State& next) { take(next.requests, i); });
    if (request.orphan == 0 && now.silences < world_.silences)
      happens(now, true, fmt::format("{} waits for the answer to {} in vain", name_of(request.node), name),
              [&](State& next) {
                ++next.silences;
                Request late = take(next.requests, i);
                late.orphan = 1;
                if (swap) put(next.requests, late);
                claim(next, request.node, request.slot, Claim::NoAnswer{});
              });
  }
  for (std::size_t i = 0; i < now.answers.size; ++i) {
    const Answer answer = now.answers.items[i];
    const auto event = [&]() -> Claim::Event {
      if (answer.what == static_cast<Byte>(What::swap)) return Claim::Swapped{answer.yes != 0};
      return Claim::Seen{Owner{pod, name_of(answer.owner), answer.epoch}};
    };
    const auto text = answer.what == static_cast<Byte>(What::swap)
                          ? std::string(answer.yes != 0 ? "yes" : "no")
                          : fmt::format("{}@{}", name_of(answer.owner), answer.epoch);
    happens(now, false, fmt::format("{} hears the store's {}", name_of(answer.node), text), [&](State& next) {
      take(next.answers, i);
      if (answer.late == 0) return claim(next, answer.node, answer.slot, event());
      // The bug: it is taken for that to another question.
      const auto other = std::ranges::find_if(next.requests.items, [&](const Request& request) {
        return request.node == answer.node && request.slot == answer.slot && request.orphan == 0 &&
               request.what == answer.what;
      });
      if (other == next.requests.items.end()) return;
      Request late = take(next.requests, static_cast<std::size_t>(other - next.requests.items.begin()));
      late.orphan = 1;
      put(next.requests, late);
      claim(next, answer.node, answer.slot, event());
    });
    if (answer.late == 0 && now.silences < world_.silences)
      happens(now, true, fmt::format("{} doesn't get the store's {}", name_of(answer.node), text), [&](State& next) {
        ++next.silences;
        take(next.answers, i);
        if (bug_ == Bug::late_answer && answer.what == static_cast<Byte>(What::swap)) {
          Answer late = answer;
          late.late = 1;
          put(next.answers, late);
        }
        claim(next, answer.node, answer.slot, Claim::NoAnswer{});
      });
  }
}

/// A new daemon finds what is frozen.
void Model::restart(State& state, Byte node) {
  state.up[node] = 1;
  for (Byte slot = 0; slot < 2; ++slot) {
    Copy& copy = state.copies[node][slot];
    if (copy.run != Run::pinned) continue;
    if (bug_ == Bug::adopted_unasked || copy.noted == 0) {
      go_on(state, copy);
      continue;
    }
    if (copy.word == 2) {
      copy.serving = 1;
      continue;
    }
    copy.serving = 0;
    copy.claim = known(Suspect(facts(state, copy), bug_));
    claim(state, node, slot, Claim::Doubt{});
  }
}

void Model::each_crash(const State& now, Byte node) {
  const auto forget = [&](State& next) {
    next.up[node] = 0;
    abandon(next, [&](const auto& item) { return item.node == node; });
    for (auto& copy : next.copies[node]) {
      copy.claim = none;
      copy.departing = copy.waits = 0;
    }
  };
  if (now.up[node] != 0 && now.crashes < world_.daemon_crashes)
    happens(now, true, name_of(node) + "'s daemon dies", [&](State& next) {
      ++next.crashes;
      forget(next);
      // Tracees of a tracer that is gone run on.
      for (auto& copy : next.copies[node])
        if (copy.run == Run::stopped) go_on(next, copy);
    });
  if (now.losses < world_.machine_crashes)
    happens(now, true, fmt::format("machine {} is lost", name_of(node)), [&](State& next) {
      ++next.losses;
      forget(next);
      bool owes = false;
      for (auto& copy : next.copies[node]) {
        owes |= copy.role == 0 && owed_by(next, copy.move);
        if (copy.role == 1 && copy.run == Run::pinned) next.lost |= static_cast<Byte>(1 << node);
        copy = {};
      }
      if (next.owner == node || owes) next.excused = 1;
    });
  if (now.up[node] == 0)
    happens(now, false, name_of(node) + "'s daemon is there again", [&](State& next) { restart(next, node); });
}

void Model::each_drain(const State& now, Byte node, Byte slot) {
  const Copy& copy = now.copies[node][slot];
  if (now.up[node] == 0) return;
  if (copy.run == Run::running && copy.owed != 0) {
    State probe = now;
    const Byte source = now.moves[copy.move].from;
    const Copy* origin = find(probe, source, copy.move, 0);
    if (now.up[source] != 0 && origin != nullptr && origin->serving != 0)
      happens(now, false, name_of(node) + " has got all that was owed", [&](State& next) {
        next.copies[node][slot] = {.run = Run::running, .fresh = copy.fresh, .word = copy.word};
        say(next, Say::drained, copy.move);
      });
    if (now.up[source] != 0 && origin == nullptr)
      happens(now, false, name_of(node) + " ends the pod: its source has nothing of it",
              [&](State& next) { destroy(next, next.copies[node][slot]); });
  }
  // The word that nothing is owed any more may have been lost.
  if (copy.serving == 0) return;
  State probe = now;
  const Byte peer = now.moves[copy.move].to;
  const Copy* there = find(probe, peer, copy.move, 1);
  if (now.up[peer] != 0 && (there == nullptr || there->owed == 0))
    happens(now, false, name_of(node) + " asks, and is needed no more",
            [&](State& next) { destroy(next, next.copies[node][slot]); });
}

/// Frozen, listed by `godwit resolve`, and ready for a word: the store was asked, and gave no answer.
bool Model::doubtful(const Copy& copy) const {
  return copy.claim != none && copy.waits != 0 && claims_[copy.claim].doubtful();
}

void Model::resolve(State& state, Byte node, Byte slot, bool here) {
  claim(state, node, slot, Claim::Resolved{here});
  Copy& copy = state.copies[node][slot];
  if (copy.run != Run::absent) copy.word = here ? 1 : 2;
}

/// An operator's word, which is true: they have looked at what runs. Where a copy runs, the doubtful one hears that.
/// Where none does, and all that are left are in doubt or only keep pages, one that is what the pod was last is said to
/// be it, and the others hear in the same step that they aren't: a word to one of two frozen sides alone is no truth,
/// for the other one still goes by the record. Nor is one modelled that the source passes on with its go.
///
/// The word stands in the pod's directory until the record has been told, in one step: what comes between the look and
/// the swap makes it only try again.
void Model::each_word(const State& now, Byte node, Byte slot) {
  const Copy& copy = now.copies[node][slot];
  if (copy.run == Run::running && copy.word != 0)
    happens(now, false, name_of(node) + " tells the store the operator's word", [&](State& next) {
      next.copies[node][slot].word = 0;
      // Who is owed pages has been committed to where the record says so, and its source goes by that epoch.
      if (next.owner == node && (copy.owed != 0 || bug_ == Bug::word_unfenced)) return;
      next.owner = node;
      ++next.epoch;
    });
  if (!doubtful(copy)) return;
  bool runs = false, others_wait = true;
  for (const auto& slots : now.copies) {
    for (const auto& other : slots) {
      runs = runs || other.run == Run::running;
      others_wait = others_wait && (other.run == Run::absent || other.serving != 0 || doubtful(other));
    }
  }
  if (runs)
    happens(now, false, fmt::format("an operator says at {} that it is elsewhere", name_of(node)),
            [&](State& next) { resolve(next, node, slot, false); });
  if (runs || !others_wait || copy.fresh == 0) return;
  happens(now, false, fmt::format("an operator says everywhere that it is on {}", name_of(node)), [&](State& next) {
    resolve(next, node, slot, true);
    for (Byte other = 0; other < world_.nodes; ++other)
      for (Byte place = 0; place < 2; ++place)
        if (doubtful(next.copies[other][place])) resolve(next, other, place, false);
  });
}

State Model::first() const {
  State first{};
  for (Byte node = 0; node < world_.nodes; ++node) first.up[node] = 1;
  first.copies[0][0] = {.run = Run::running, .fresh = 1};
  return first;
}

const std::vector<Step>& Model::each(const State& now) {
  steps_.clear();
  for (Byte node = 0; node < world_.nodes; ++node) {
    each_crash(now, node);
    if (now.up[node] == 0) continue;
    for (Byte slot = 0; slot < 2; ++slot) {
      each_move(now, node, slot);
      each_claim(now, node, slot);
      each_drain(now, node, slot);
      each_word(now, node, slot);
    }
  }
  each_message(now);
  each_store(now);
  return steps_;
}

void Model::check_end(const State& state) const {
  int running = 0;
  for (Byte node = 0; node < world_.nodes; ++node) {
    for (const auto& copy : state.copies[node]) {
      if (copy.run == Run::pinned || copy.run == Run::stopped) throw Broken{"a copy stays frozen for ever", true};
      if (copy.run != Run::running) continue;
      ++running;
      if (state.owner != node) throw Broken{"the pod runs where the record doesn't say", true};
      if (copy.owed != 0) throw Broken{"pages stay owed for ever", true};
    }
  }
  if (running == 0 && !excused(state)) throw Broken{"the pod runs nowhere", true};
}

}  // namespace godwit::sim::small
