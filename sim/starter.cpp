#include "sim/starter.hpp"

#include <algorithm>

#include "sim/world.hpp"

namespace godwit::sim {
namespace {

using control::Negotiation;

constexpr control::Time answer_time{5'000}, group_time{30'000};

}  // namespace

/// Carries out one negotiation.
class Search : public Actor {
 public:
  Search(Starter& starter, Daemon& daemon, std::uint64_t number, Negotiation::Plan plan, Starter::Done done)
      : Actor(daemon), starter_(starter), number_(number), negotiation_(std::move(plan)), done_(std::move(done)) {}

  void step(const Negotiation::Event& event) {
    for (const auto& action : negotiation_.step(event, starter_.now()))
      std::visit([this](const auto& wanted) { carry_out(wanted); }, action);
  }

  void answered(const std::string& by, const control::Answer& answer) {
    if (asked_ == by) asked_.clear(), starter_.admission_.asked(negotiation_.move());
    step(Negotiation::Answered{by, answer});
  }

 private:
  void carry_out(const Negotiation::Send& send) {
    auto& admission = starter_.admission_;
    if (!send.ask.probe && send.ask.from == node_name(daemon_.index()))
      admission.asking(send.ask.move, send.ask.pod_id, send.to);
    asked_ = send.to;
    daemon_.send({daemon_.index(), number(send.to), 0, 0, AskRoom{number_, send.ask}});
    later(send.ask.elsewhere.empty() ? answer_time : group_time, [this, to = send.to, question = ++questions_] {
      if (question != questions_ || asked_ != to) return;
      asked_.clear();
      starter_.admission_.asked(negotiation_.move());
      step(Negotiation::NoAnswer{to, "no answer"});
    });
  }
  void carry_out(const Negotiation::Wait& wait) {
    later(wait.until - starter_.now(), [this] { step(Negotiation::Tick{}); });
  }
  void carry_out(const Negotiation::Withdraw& withdraw) {
    daemon_.send({daemon_.index(), number(withdraw.to), 0, 0, control::Withdrawal{negotiation_.move()}});
  }
  void carry_out(const Negotiation::MoveOut& out) { end(out); }
  void carry_out(const Negotiation::GiveUp& up) { end(up); }
  void end(const Starter::Outcome& outcome) {
    starter_.admission_.asked(negotiation_.move());
    done_(outcome);
    starter_.over(number_);
  }

  Starter& starter_;
  const std::uint64_t number_;
  Negotiation negotiation_;
  Starter::Done done_;
  std::string asked_;  ///< whose answer is waited for
  std::uint64_t questions_ = 0;
};

Starter::Starter(Daemon& daemon)
    : daemon_(daemon),
      admission_(node_name(daemon.index()),
                 {.labels = daemon.machine().labels, .draining = daemon.machine().draining}) {}
Starter::~Starter() = default;

control::Time Starter::now() const {
  return daemon_.world().bug(Bug::promise_forever) ? control::Time(0) : daemon_.machine().now();
}

control::Room Starter::room() const {
  const Machine& machine = daemon_.machine();
  control::Room room{
      .memory = machine.memory - std::min(machine.memory, machine.used()), .processors = 64, .descriptors = 1 << 20};
  room.machine = machine.hardware;
  for (const auto& [id, copy] : machine.copies()) room.pods.insert(pod_name(copy.pod));
  return room;
}

void Starter::set_draining(bool draining) {
  daemon_.machine().draining = draining;
  auto policy = admission_.policy();
  policy.draining = draining;
  admission_.set(policy);
}

void Starter::check() {
  daemon_.world().ledger.promises(admission_, daemon_.machine().now(), daemon_.index());
}

std::uint64_t Starter::search(Negotiation::Plan plan, Done done) {
  const auto number = daemon_.world().next_number();
  auto& search = searches_[number] = std::make_unique<Search>(*this, daemon_, number, std::move(plan), std::move(done));
  search->step(Negotiation::Begin{});
  return number;
}

void Starter::cancel(std::uint64_t search) {
  if (const auto found = searches_.find(search); found != searches_.end()) found->second->step(Negotiation::Cancel{});
}

void Starter::over(std::uint64_t search) {
  // What answers late still has to be told that it isn't needed.
  searches_.at(search)->later(group_time,
                              [this, search] { daemon_.later([this, search] { searches_.erase(search); }); });
}

void Starter::asked(int peer, const AskRoom& question) {
  const control::Ask& ask = question.ask;
  if (ask.from != node_name(peer) && !ask.elsewhere.empty()) return;
  control::Answer answer = admission_.consider(ask, room(), now());
  check();
  const auto reply = [this, peer, search = question.search](control::Answer answer) {
    daemon_.send({daemon_.index(), peer, 0, 0, AnswerRoom{search, std::move(answer)}});
  };
  if (answer.yes || ask.elsewhere.empty() || !control::plausible(ask)) return reply(std::move(answer));
  Negotiation::Plan plan{.ask = ask, .candidates = ask.elsewhere, .delegate = false, .patience = control::Time(0)};
  plan.ask.elsewhere.clear();
  std::erase(plan.candidates, ask.from);
  if (plan.candidates.empty()) return reply(std::move(answer));
  search(std::move(plan), [reply, answer](const Outcome& outcome) mutable {
    if (const auto* out = std::get_if<Negotiation::MoveOut>(&outcome)) {
      answer = control::accept_for(std::move(answer), *out);
    }
    reply(answer);
  });
}

void Starter::answered(int peer, const AnswerRoom& answer) {
  if (const auto found = searches_.find(answer.search); found != searches_.end())
    found->second->answered(node_name(peer), answer.answer);
}

void Starter::withdrawn(int peer, const control::Withdrawal& withdrawal) {
  admission_.withdraw({node_name(peer), withdrawal.move});
}

std::vector<control::Refusal> Starter::decide(int peer, const Hello& hello) {
  if (daemon_.world().bug(Bug::undecided)) return {};
  auto refusals = admission_.decide({node_name(peer), hello.move}, pod_name(hello.pod), hello.needs, room(), now());
  check();
  return refusals;
}

}  // namespace godwit::sim
