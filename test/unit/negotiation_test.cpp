#include "control/negotiation.hpp"

#include <gtest/gtest.h>

#include <random>

#include "control/admission.hpp"

namespace godwit::control {
namespace {

constexpr std::uint64_t gib = 1ULL << 30;

Room roomy() {
  return {.memory = 8 * gib, .processors = 4, .descriptors = 10'000};
}

Ask ask_for(const std::string& pod, const std::string& from, Needs needs = {.memory = gib}) {
  return {
      .move = "move-" + pod, .pod = pod, .pod_id = "id-" + pod, .epoch = 1, .from = from, .needs = std::move(needs)};
}

TEST(Admission, PromisesRoomOnce) {
  Admission admission("b", {});
  const Room room{.memory = 3 * gib, .processors = 4, .descriptors = 100};
  EXPECT_TRUE(admission.consider(ask_for("p", "a", {.memory = 2 * gib}), room, Time(0)).yes);
  EXPECT_TRUE(admission.consider(ask_for("p", "a", {.memory = 2 * gib}), room, Time(1)).yes) << "asked again";
  const auto no = admission.consider(ask_for("q", "c", {.memory = 2 * gib}), room, Time(2));
  EXPECT_FALSE(no.yes);
  EXPECT_EQ(no.reason, "memory");
  EXPECT_NE(no.text.find("1024 MiB"), std::string::npos) << no.text;
  EXPECT_EQ(admission.promises(Time(3)).size(), 1U);
  EXPECT_TRUE(admission.consider(ask_for("q", "c", {.memory = 2 * gib}), room, Admission::promise_time + Time(2)).yes);
}

TEST(Admission, PromisesProcessorsAndDescriptorsOnce) {
  Admission admission("b", {});
  const Room room{.memory = gib, .processors = 4, .descriptors = 100};
  ASSERT_TRUE(admission.consider(ask_for("p", "a", {.processors = 2.5, .descriptors = 60}), room, Time(0)).yes);
  EXPECT_EQ(admission.consider(ask_for("q", "c", {.processors = 2}), room, Time(1)).reason, "processors");
  EXPECT_EQ(admission.consider(ask_for("r", "c", {.descriptors = 50}), room, Time(1)).reason, "descriptors");
  EXPECT_TRUE(admission.consider(ask_for("s", "c", {.processors = 1.5, .descriptors = 40}), room, Time(1)).yes);
  // What has arrived is one of the pods that were given theirs.
  ASSERT_TRUE(admission.decide({"a", "move-p"}, "id-p", {.processors = 2.5}, room, Time(2)).empty());
  admission.end({"c", "move-s"});
  const Room arrived{.memory = gib, .processors = 1.5, .descriptors = 100, .pods = {"id-p"}};
  EXPECT_TRUE(admission.consider(ask_for("q", "c", {.processors = 1.5}), arrived, Time(3)).yes);
}

TEST(Admission, AMigrationHoldsItsRoomUntilItIsOver) {
  Admission admission("b", {});
  const Room room{.memory = 3 * gib, .processors = 4, .descriptors = 100};
  const Time late = 100 * Admission::promise_time;
  ASSERT_TRUE(admission.consider(ask_for("p", "a"), room, Time(0)).yes);
  EXPECT_TRUE(admission.decide({"a", "move-p"}, "id-p", {.memory = 2 * gib}, room, Time(1)).empty());
  EXPECT_FALSE(admission.consider(ask_for("q", "a", {.memory = 2 * gib}), room, late).yes);
  admission.withdraw({"a", "move-p"});
  EXPECT_EQ(admission.promises(late).size(), 1U) << "it is under way";
  // What has arrived shows in what the system has left, and isn't subtracted once more.
  admission.used({"a", "move-p"}, 2 * gib);
  EXPECT_TRUE(admission.consider(ask_for("r", "a", {.memory = gib}), {.memory = gib, .processors = 4}, late).yes);
  admission.end({"a", "move-p"});
  admission.withdraw({"c", "move-r"});
  EXPECT_EQ(admission.promises(late).size(), 1U) << "only who has asked may withdraw";
  admission.withdraw({"a", "move-r"});
  EXPECT_TRUE(admission.promises(late).empty());
}

TEST(Admission, DecidesTheExactNeedsWithoutAPromise) {
  Admission admission("b", {});
  EXPECT_TRUE(admission.decide({"a", "m"}, "id", {.memory = gib}, roomy(), Time(0)).empty());
  EXPECT_FALSE(admission.decide({"a", "m"}, "id", {.memory = gib}, roomy(), Time(0)).empty()) << "twice under one name";
  const auto no = admission.decide({"a", "n"}, "id-2", {.memory = 100 * gib}, roomy(), Time(0));
  ASSERT_EQ(no.size(), 1U);
  EXPECT_EQ(no[0].reason, Reason::memory);
  EXPECT_EQ(admission.promises(Time(0)).size(), 1U);
}

TEST(Admission, SaysWhy) {
  const auto reason = [](Policy policy, Needs needs, Room room) {
    return Admission("b", std::move(policy)).consider(ask_for("p", "a", std::move(needs)), room, Time(0)).reason;
  };
  EXPECT_EQ(reason({}, {}, roomy()), "");
  EXPECT_EQ(reason({.draining = true}, {}, roomy()), "draining");
  EXPECT_EQ(reason({.guests = false}, {.home = "a"}, roomy()), "owner");
  EXPECT_EQ(reason({.guests = false}, {.home = "b"}, roomy()), "") << "its own comes home";
  EXPECT_EQ(reason({}, {.labels = {"secure"}}, roomy()), "label");
  EXPECT_EQ(reason({.labels = {{"secure", ""}}}, {.labels = {"secure"}}, roomy()), "");
  EXPECT_EQ(reason({.labels = {{"zone", "x"}}}, {.labels = {"zone=y"}}, roomy()), "label");
  EXPECT_EQ(reason({.labels = {{"zone", "x"}}}, {.labels = {"zone=x", "zone"}}, roomy()), "");
  EXPECT_EQ(reason({}, {.processors = 8}, roomy()), "processors");
  EXPECT_EQ(reason({}, {.processors = 3}, {.memory = gib, .processors = 2.5}), "processors");
  EXPECT_EQ(reason({}, {.descriptors = 20'000}, roomy()), "descriptors");
  EXPECT_EQ(reason({.pods = 1}, {}, {.memory = gib, .processors = 1, .pods = {"id-other"}}), "quota");
  Room taken = roomy();
  taken.objections.push_back({Reason::address, "taken"});
  EXPECT_EQ(reason({}, {}, taken), "address");
  Ask other = ask_for("p", "a");
  other.version = protocol + 1;
  EXPECT_EQ(Admission("b", {}).consider(other, roomy(), Time(0)).reason, "protocol");
  other = ask_for("p", "a");
  other.needs.labels.assign(list_limit + 1, "x");
  EXPECT_EQ(Admission("b", {}).consider(other, roomy(), Time(0)).reason, "protocol");
}

const Machine modern{.kernel = "6.18", .vdso = "f00d", .xfeatures = 0xe7, .cpu_flags = {"avx", "avx512f", "sse2"}};
const Machine old{.kernel = "6.18", .vdso = "f00d", .xfeatures = 0x7, .cpu_flags = {"avx", "sse2"}};

Room room_of(const Machine& machine) {
  Room room = roomy();
  room.machine = machine;
  return room;
}

TEST(Machine, WhatIsLackingHasNames) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(lacking("b", modern, modern), Texts{});
  EXPECT_EQ(lacking("b", modern, old), Texts{}) << "more than is needed";
  EXPECT_EQ(lacking("b", old, modern), (Texts{"b's processor lacks the register state opmask, ZMM_Hi256, Hi16_ZMM",
                                              "b's processor lacks avx512f"}));
  Machine other = modern;
  other.kernel = "6.1";
  EXPECT_EQ(lacking("b", other, modern), Texts{}) << "programs don't see a kernel's name";
  other.vdso = "beef";
  EXPECT_EQ(
      lacking("b", other, modern),
      Texts{"b's kernel (6.1) has another vdso than the one under the pod (6.18): programs keep addresses in it"});
  Machine strange = old;
  strange.xfeatures |= 1ULL << 40;
  // Somebody else's list needn't be in order.
  strange.cpu_flags = {"z", "sse2", "avx", "a"};
  EXPECT_EQ(lacking("b", old, strange),
            (Texts{"b's processor lacks the register state number 40", "b's processor lacks z, a"}));
}

TEST(Machine, IsBounded) {
  EXPECT_TRUE(plausible(modern));
  Machine machine = modern;
  machine.cpu_flags.assign(most_cpu_flags, "x");
  EXPECT_TRUE(plausible(machine));
  machine.cpu_flags.emplace_back("x");
  EXPECT_FALSE(plausible(machine)) << "too many";
  for (auto* text : {&(machine = modern).kernel, &machine.vdso, machine.cpu_flags.data()}) {
    const std::string good = *text;
    *text = std::string(machine_text_limit + 1, 'x');
    EXPECT_FALSE(plausible(machine)) << "too long";
    *text = "\x1b[2J";
    EXPECT_FALSE(plausible(machine)) << "not printable";
    Ask ask = ask_for("p", "a");
    ask.needs.machine = machine;
    EXPECT_FALSE(plausible(ask));
    EXPECT_FALSE(read_request(image::pack(Request{ask, {}})));
    *text = good;
  }
}

TEST(Admission, AnotherMachineIsRefusedBeforeAnythingMoves) {
  Admission admission("b", {});
  const auto no = admission.consider(ask_for("p", "a", {.machine = modern}), room_of(old), Time(0));
  EXPECT_FALSE(no.yes);
  EXPECT_EQ(no.reason, "machine");
  EXPECT_NE(no.text.find("b's processor lacks avx512f"), std::string::npos) << no.text;
  const auto exact = admission.decide({"a", "m"}, "id", {.machine = modern}, room_of(old), Time(1));
  ASSERT_EQ(exact.size(), 2U);
  EXPECT_EQ(exact[0].reason, Reason::machine);
  EXPECT_TRUE(admission.consider(ask_for("p", "a", {.machine = old}), room_of(modern), Time(2)).yes);
  // What is the same for all isn't kept for each.
  EXPECT_TRUE(admission.promises(Time(3)).begin()->second.needs.machine.cpu_flags.empty());
}

TEST(Admission, ANoIsNeverTooLongToBeHeard) {
  Needs needs;
  needs.machine.cpu_flags.assign(most_cpu_flags, std::string(machine_text_limit, 'x'));
  const auto answer = [&] {
    const Ask ask = ask_for("p", "a", needs);
    EXPECT_TRUE(plausible(ask));
    return Admission("b", {}).consider(ask, roomy(), Time(0));
  };
  const auto flags = answer();
  EXPECT_TRUE(plausible(flags)) << flags.text.size();
  EXPECT_NE(flags.text.find("and 1008 more"), std::string::npos) << flags.text;
  needs.labels.assign(list_limit, std::string(text_limit, 'x'));
  const auto labels = answer();
  EXPECT_TRUE(plausible(labels)) << labels.text.size();
  EXPECT_TRUE(labels.text.starts_with("b hasn't the label x")) << labels.text;
}

TEST(Admission, OneOfTwoRequestsThatCrossIsFirstOnBothSides) {
  Admission a("a", {}), b("b", {});
  const Ask from_a = ask_for("p", "a"), from_b = ask_for("q", "b");
  a.asking(from_a.move, from_a.pod_id, "b");
  b.asking(from_b.move, from_b.pod_id, "a");
  EXPECT_TRUE(b.consider(from_a, roomy(), Time(0)).yes) << "id-p is the smaller";
  const auto no = a.consider(from_b, roomy(), Time(0));
  EXPECT_EQ(no.reason, "busy");
  a.asked(from_a.move);
  EXPECT_TRUE(a.consider(from_b, roomy(), Time(1)).yes);
}

TEST(Admission, TwoMoversForOnePod) {
  Admission c("c", {});
  Ask one = ask_for("p", "a"), two = ask_for("p", "b");
  two.move = "another";
  EXPECT_TRUE(c.consider(one, roomy(), Time(0)).yes);
  EXPECT_EQ(c.consider(two, roomy(), Time(0)).reason, "busy");
}

TEST(Admission, AnAddressIsPromisedOnce) {
  Admission c("c", {});
  const Needs needs{.addresses = {"10.66.0.21/16"}};
  EXPECT_TRUE(c.consider(ask_for("p", "a", needs), roomy(), Time(0)).yes);
  EXPECT_TRUE(c.consider(ask_for("p", "a", needs), roomy(), Time(1)).yes) << "its own";
  EXPECT_EQ(c.consider(ask_for("q", "b", needs), roomy(), Time(2)).reason, "address");
  EXPECT_TRUE(c.consider(ask_for("q", "b", needs), roomy(), Admission::promise_time + Time(2)).yes);
}

TEST(Admission, AMoveIsItsSenders) {
  Admission c("c", {});
  ASSERT_TRUE(c.consider(ask_for("p", "a"), roomy(), Time(0)).yes);
  EXPECT_TRUE(c.decide({"b", "move-p"}, "id-q", {.memory = gib}, roomy(), Time(1)).empty()) << "another one's";
  c.end({"b", "move-p"});
  EXPECT_EQ(c.promises(Time(2)).size(), 1U);
  EXPECT_TRUE(c.decide({"a", "move-p"}, "id-p", {.memory = gib}, roomy(), Time(3)).empty());
}

TEST(Admission, WhatHasArrivedCountsOnce) {
  Admission b("b", {.pods = 2});
  ASSERT_TRUE(b.consider(ask_for("p", "a"), roomy(), Time(0)).yes);
  ASSERT_TRUE(b.decide({"a", "move-p"}, "id-p", {.memory = gib}, roomy(), Time(1)).empty());
  Room room = roomy();
  room.pods = {"id-p"};
  EXPECT_TRUE(b.consider(ask_for("q", "a"), room, Time(2)).yes) << "its pages are still coming";
  EXPECT_EQ(b.consider(ask_for("r", "a"), room, Time(3)).reason, "quota");
}

TEST(Admission, PromisesAreBounded) {
  Admission admission("b", {});
  for (std::size_t i = 0; i < Admission::most_promises; ++i)
    ASSERT_TRUE(admission.consider(ask_for(std::to_string(i), "a", {}), roomy(), Time(0)).yes);
  EXPECT_EQ(admission.consider(ask_for("more", "a", {}), roomy(), Time(0)).reason, "busy");
}

TEST(Needs, ReasonsHaveNames) {
  for (int i = 0; i <= static_cast<int>(Reason::protocol); ++i)
    EXPECT_EQ(reason_named(to_string(static_cast<Reason>(i))), static_cast<Reason>(i));
  EXPECT_EQ(reason_named("nonsense"), Reason::protocol);
}

using Actions = std::vector<Negotiation::Action>;

Negotiation::Plan plan_for(std::vector<std::string> candidates, std::vector<std::string> hints = {}) {
  return {.ask = ask_for("p", "a"), .candidates = std::move(candidates), .hints = std::move(hints)};
}

Negotiation::Answered yes(const std::string& by, const std::string& node = {}) {
  return {by, {.move = "move-p", .yes = true, .node = node.empty() ? by : node}};
}

Negotiation::Answered no(const std::string& by, Reason reason) {
  return {by, {.move = "move-p", .reason = std::string(to_string(reason)), .text = by + " doesn't"}};
}

template <typename T>
const T* find(const Actions& actions) {
  for (const auto& action : actions)
    if (const auto* found = std::get_if<T>(&action)) return found;
  return nullptr;
}

TEST(Negotiation, AsksAndMoves) {
  Negotiation negotiation(plan_for({"b"}));
  const auto asked = negotiation.step(Negotiation::Begin{}, Time(0));
  ASSERT_NE(find<Negotiation::Send>(asked), nullptr);
  EXPECT_EQ(find<Negotiation::Send>(asked)->to, "b");
  const auto out = negotiation.step(yes("b"), Time(1));
  ASSERT_NE(find<Negotiation::MoveOut>(out), nullptr);
  EXPECT_EQ(find<Negotiation::MoveOut>(out)->to, "b");
  EXPECT_TRUE(negotiation.step(yes("b"), Time(2)).empty()) << "the same answer once more";
}

TEST(Negotiation, TheFirstAnswersForItsGroup) {
  Negotiation negotiation(plan_for({"b", "c", "d"}));
  const auto asked = negotiation.step(Negotiation::Begin{}, Time(0));
  EXPECT_EQ(find<Negotiation::Send>(asked)->ask.elsewhere, (std::vector<std::string>{"c", "d"}));
  // It is out of reach: the next one answers for the rest, and names another.
  const auto again = negotiation.step(Negotiation::NoAnswer{"b", "down"}, Time(1));
  ASSERT_NE(find<Negotiation::Send>(again), nullptr);
  EXPECT_EQ(find<Negotiation::Send>(again)->to, "c");
  const auto out = negotiation.step(yes("c", "d"), Time(2));
  ASSERT_NE(find<Negotiation::MoveOut>(out), nullptr);
  EXPECT_EQ(find<Negotiation::MoveOut>(out)->to, "d");
}

TEST(Negotiation, GoesNowhereThatWasNotAskedFor) {
  Negotiation negotiation(plan_for({"b"}));
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto after = negotiation.step(yes("b", "x"), Time(1));
  EXPECT_EQ(find<Negotiation::MoveOut>(after), nullptr);
  ASSERT_NE(find<Negotiation::GiveUp>(after), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(after)->reason, Reason::protocol);
}

TEST(Negotiation, ChecksTheLabelsItself) {
  auto plan = plan_for({"b"});
  plan.ask.needs.labels = {"secure"};
  Negotiation negotiation(plan);
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto after = negotiation.step(yes("b"), Time(1));
  EXPECT_NE(find<Negotiation::Withdraw>(after), nullptr);
  ASSERT_NE(find<Negotiation::GiveUp>(after), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(after)->reason, Reason::label);
}

TEST(Negotiation, NamesWhoWould) {
  Negotiation negotiation(plan_for({"b"}, {"c", "d"}));
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto probe = negotiation.step(no("b", Reason::memory), Time(1));
  ASSERT_NE(find<Negotiation::Send>(probe), nullptr);
  EXPECT_TRUE(find<Negotiation::Send>(probe)->ask.probe);
  negotiation.step(no("c", Reason::draining), Time(2));
  const auto end = negotiation.step(yes("d"), Time(3));
  ASSERT_NE(find<Negotiation::GiveUp>(end), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->reason, Reason::memory);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->alternative, "d");
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->texts, (std::vector<std::string>{"b doesn't"}));
}

/// Asks the nodes with these machines until it is over.
Negotiation::Action outcome_of(Negotiation negotiation, const std::map<std::string, Machine>& machines) {
  auto actions = negotiation.step(Negotiation::Begin{}, Time(0));
  for (int turn = 1; turn < 100 && !negotiation.over(); ++turn) {
    const auto* send = find<Negotiation::Send>(actions);
    if (send == nullptr) break;
    auto answer = Admission(send->to, {}).consider(send->ask, room_of(machines.at(send->to)), Time(turn));
    actions = negotiation.step(Negotiation::Answered{send->to, std::move(answer)}, Time(turn));
  }
  return actions.empty() ? Negotiation::Wait{} : actions.back();
}

TEST(Negotiation, AGroupGoesOnPastAMachineThatLacksSomething) {
  auto plan = plan_for({"b", "c", "d"});
  plan.ask.needs.machine = modern;
  // Who answers for the group asks them one by one.
  plan.delegate = false;
  const auto end = outcome_of(Negotiation(plan), {{"b", old}, {"c", old}, {"d", modern}});
  ASSERT_NE(find<Negotiation::MoveOut>({end}), nullptr);
  EXPECT_EQ(find<Negotiation::MoveOut>({end})->to, "d");
}

TEST(Negotiation, NamesNobodyWhoseMachineLacksSomething) {
  auto plan = plan_for({"b"}, {"c", "d"});
  plan.ask.needs.machine = modern;
  auto end = outcome_of(Negotiation(plan), {{"b", old}, {"c", old}, {"d", modern}});
  ASSERT_NE(find<Negotiation::GiveUp>({end}), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>({end})->reason, Reason::machine);
  EXPECT_EQ(find<Negotiation::GiveUp>({end})->alternative, "d");
  end = outcome_of(Negotiation(plan), {{"b", old}, {"c", old}, {"d", old}});
  ASSERT_NE(find<Negotiation::GiveUp>({end}), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>({end})->alternative, "");
}

TEST(Negotiation, NamesNobodyWithoutTheLabels) {
  auto plan = plan_for({"b"}, {"c", "d"});
  plan.ask.needs.labels = {"secure"};
  Negotiation negotiation(plan);
  negotiation.step(Negotiation::Begin{}, Time(0));
  negotiation.step(no("b", Reason::memory), Time(1));
  const auto next = negotiation.step(yes("c"), Time(2));
  ASSERT_NE(find<Negotiation::Send>(next), nullptr) << "its yes isn't one";
  EXPECT_EQ(find<Negotiation::Send>(next)->to, "d");
  auto good = yes("d");
  good.answer.labels = {{"secure", ""}};
  const auto end = negotiation.step(good, Time(3));
  ASSERT_NE(find<Negotiation::GiveUp>(end), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->alternative, "d");
}

TEST(Negotiation, AsksForNoAlternativeAfterItsDeadline) {
  auto plan = plan_for({"b"}, {"c", "d"});
  plan.deadline = Time(100);
  Negotiation negotiation(plan);
  negotiation.step(Negotiation::Begin{}, Time(0));
  EXPECT_NE(find<Negotiation::Send>(negotiation.step(no("b", Reason::memory), Time(99))), nullptr);
  const auto end = negotiation.step(Negotiation::NoAnswer{"c", "silent"}, Time(100));
  ASSERT_NE(find<Negotiation::GiveUp>(end), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->reason, Reason::memory);
}

TEST(Negotiation, TellsOfThoseThatHaveRefusedBefore) {
  auto plan = plan_for({"c"});
  plan.refused = {{Reason::hello, "b has other files"}};
  Negotiation negotiation(plan);
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto end = negotiation.step(no("c", Reason::memory), Time(1));
  ASSERT_NE(find<Negotiation::GiveUp>(end), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->reason, Reason::hello);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->texts, (std::vector<std::string>{"b has other files", "c doesn't"}));
  // Nobody is left of those whom the user has named: somebody else would take it.
  plan.candidates.clear();
  plan.hints = {"d"};
  Negotiation last(plan);
  ASSERT_NE(find<Negotiation::Send>(last.step(Negotiation::Begin{}, Time(0))), nullptr);
  const auto named = last.step(yes("d"), Time(1));
  ASSERT_NE(find<Negotiation::GiveUp>(named), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(named)->alternative, "d");
}

TEST(Negotiation, AsksTheBusyAgainForAWhile) {
  Negotiation negotiation(plan_for({"b"}));
  auto actions = negotiation.step(Negotiation::Begin{}, Time(0));
  Time now(0);
  int asked = 0;
  while (find<Negotiation::GiveUp>(actions) == nullptr) {
    ASSERT_LT(++asked, 1000);
    actions = negotiation.step(no("b", Reason::busy), now);
    if (const auto* wait = find<Negotiation::Wait>(actions)) {
      now = wait->until;
      actions = negotiation.step(Negotiation::Tick{}, now);
    }
  }
  EXPECT_GT(asked, 3);
  EXPECT_EQ(find<Negotiation::GiveUp>(actions)->reason, Reason::busy);
  EXPECT_GE(now, Time(10'000));
}

TEST(Negotiation, EndsByItsDeadline) {
  auto plan = plan_for({"b"});
  plan.deadline = Time(100);
  Negotiation negotiation(plan);
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto wait = negotiation.step(no("b", Reason::busy), Time(90));
  ASSERT_NE(find<Negotiation::Wait>(wait), nullptr);
  EXPECT_EQ(find<Negotiation::Wait>(wait)->until, Time(100));
  const auto end = negotiation.step(Negotiation::Tick{}, Time(100));
  ASSERT_NE(find<Negotiation::GiveUp>(end), nullptr);
  EXPECT_EQ(find<Negotiation::GiveUp>(end)->reason, Reason::late);
}

TEST(Negotiation, ACancelledOneTakesItsAskBack) {
  Negotiation negotiation(plan_for({"b"}));
  negotiation.step(Negotiation::Begin{}, Time(0));
  const auto end = negotiation.step(Negotiation::Cancel{}, Time(1));
  EXPECT_NE(find<Negotiation::Withdraw>(end), nullptr);
  EXPECT_NE(find<Negotiation::GiveUp>(end), nullptr);
  const auto late = negotiation.step(yes("b"), Time(2));
  ASSERT_EQ(late.size(), 1U);
  EXPECT_NE(find<Negotiation::Withdraw>(late), nullptr);
}

/// Whatever is lost, doubled or out of order, every negotiation ends once, and no promise outlives its time.
TEST(Negotiation, EndsWhateverTheNetworkDoes) {
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    const auto chance = [&](std::uint32_t of) { return random() % of == 0; };
    std::map<std::string, Admission> nodes;
    for (const char* name : {"b", "c", "d"}) nodes.emplace(name, Admission(name, {.draining = chance(3)}));
    Negotiation negotiation(plan_for({"b", "c"}, {"d"}));
    Time now(0);
    std::vector<Negotiation::Event> events{Negotiation::Begin{}};
    int ends = 0;
    std::string moved_to;
    for (int steps = 0; !events.empty() && steps < 10'000; ++steps) {
      now += Time(random() % 20);
      const auto at = static_cast<std::ptrdiff_t>(random() % events.size());
      const auto event = events[static_cast<std::size_t>(at)];
      if (!chance(10)) events.erase(events.begin() + at);
      for (const auto& action : negotiation.step(event, now)) {
        if (const auto* send = std::get_if<Negotiation::Send>(&action)) {
          const Room room{.memory = chance(3) ? 0 : 8 * gib, .processors = 1, .descriptors = 1};
          auto answer = nodes.at(send->to).consider(send->ask, room, now);
          if (chance(4)) answer = {.move = answer.move, .reason = "busy"};
          if (chance(5))
            events.emplace_back(Negotiation::NoAnswer{send->to, "lost"});
          else
            events.emplace_back(Negotiation::Answered{send->to, std::move(answer)});
        } else if (const auto* wait = std::get_if<Negotiation::Wait>(&action)) {
          now = std::max(now, wait->until);
          events.emplace_back(Negotiation::Tick{});
        } else if (const auto* withdraw = std::get_if<Negotiation::Withdraw>(&action)) {
          nodes.at(withdraw->to).withdraw({"a", "move-p"});
        } else if (const auto* out = std::get_if<Negotiation::MoveOut>(&action)) {
          moved_to = out->to;
          ++ends;
        } else {
          ++ends;
        }
      }
    }
    ASSERT_EQ(ends, 1) << "seed " << seed;
    ASSERT_TRUE(negotiation.over());
    for (auto& [name, admission] : nodes) {
      const auto& promises = admission.promises(now);
      ASSERT_TRUE(promises.empty() || name == moved_to || name == "b" || name == "c") << "seed " << seed;
      ASSERT_TRUE(admission.promises(now + Admission::promise_time).empty()) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace godwit::control
