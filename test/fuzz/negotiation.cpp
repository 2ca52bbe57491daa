// What starters say to each other, and what the two halves of a negotiation do with it.
#include "control/negotiation.hpp"

#include "control/admission.hpp"
#include "control/messages.hpp"
#include "fuzz.hpp"

namespace {

using namespace godwit;
using control::Time;

/// The answering half: a yes is only ever a promise that is counted.
void ask(const control::Ask& asked) {
  control::Admission admission("a", {.labels = {{"zone", "x"}}, .pods = 8});
  const control::Room room{.memory = 8 * GiB, .processors = 4, .descriptors = 1000, .pods = {"one", "two"}};
  for (const Time now : {Time(0), Time(1)}) {
    const auto answer = admission.consider(asked, room, now);
    if (!control::plausible(asked)) fuzz::require(!answer.yes, "nothing is promised to who makes no sense");
    if (answer.yes) fuzz::require(control::plausible(answer), "a yes makes sense");
    const std::size_t promised = answer.yes && !asked.probe ? 1 : 0;
    fuzz::require(admission.promises(now).size() == promised, "one promise for a yes, none for a no");
  }
  const control::Incoming migration{asked.from, asked.move};
  (void)admission.decide(migration, asked.pod_id, asked.needs, room, Time(2));
  admission.used(migration, UINT64_MAX);
  (void)admission.consider(asked, room, Time(3));
  admission.withdraw(migration);
  admission.end(migration);
  fuzz::require(admission.promises(Time(4)).empty(), "nothing stays promised");
}

/// The asking half: it goes where the user has said, whatever it is answered, and comes to an end. An answer to another
/// question is none (node/starter).
void answer(control::Answer heard) {
  heard.move = "m";
  control::Negotiation negotiation({.ask = {.move = "m", .pod = "web", .pod_id = "1f", .from = "a"},
                                    .candidates = {"b", "c"},
                                    .hints = {"d"},
                                    .patience = Time(100)});
  auto actions = negotiation.step(control::Negotiation::Begin{}, Time(0));
  for (int turn = 1; turn < 1000 && !negotiation.over(); ++turn) {
    std::vector<control::Negotiation::Action> next;
    const Time now(10 * turn);
    for (const auto& action : actions) {
      std::vector<control::Negotiation::Action> more;
      if (const auto* send = std::get_if<control::Negotiation::Send>(&action))
        more = negotiation.step(control::Negotiation::Answered{send->to, heard}, now);
      else if (std::holds_alternative<control::Negotiation::Wait>(action))
        more = negotiation.step(control::Negotiation::Tick{}, now);
      next.insert(next.end(), more.begin(), more.end());
    }
    for (const auto& action : next)
      if (const auto* out = std::get_if<control::Negotiation::MoveOut>(&action))
        fuzz::require(out->to == "b" || out->to == "c", "it goes where the user has said");
    actions = std::move(next);
  }
  fuzz::require(negotiation.over(), "it comes to an end");
}

void one(BytesView input) {
  if (const auto request = control::read_request(input)) {
    fuzz::round_trip<control::Request>(input);
    if (!request->ask.move.empty()) ask(request->ask);
  }
  if (const auto heard = control::read_answer(input)) {
    fuzz::round_trip<control::Answer>(input);
    answer(*heard);
  }
}

std::vector<Bytes> seeds() {
  control::Request request{.ask = {.move = "m1",
                                   .pod = "web",
                                   .pod_id = "1f",
                                   .epoch = 3,
                                   .from = "b",
                                   .needs = {.memory = MiB, .processors = 1.5, .descriptors = 12, .labels = {"zone=x"}},
                                   .elsewhere = {"c", "d"}}};
  control::Request probe = request;
  probe.ask.probe = true;
  std::vector<Bytes> all{image::pack(request), image::pack(probe),
                         image::pack(control::Request{.ask = {}, .withdrawal = {"m1"}})};
  for (const auto& heard : {control::Answer{.move = "m", .yes = true, .node = "b", .labels = {{"zone", "x"}}},
                            control::Answer{.move = "m", .yes = true, .node = "c"},
                            control::Answer{.move = "m", .reason = "memory", .text = "too little"},
                            control::Answer{.move = "m", .reason = "busy", .text = "later"}})
    all.push_back(image::pack(heard));
  return all;
}

}  // namespace

FUZZ_TARGET(one, seeds)
