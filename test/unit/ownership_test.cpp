#include "control/ownership.hpp"

#include <gtest/gtest.h>

namespace godwit::control {
namespace {

using Role = Claim::Role;

const Owner before{"id", "a", 7};
const Owner taken{"id", "b", 8};   ///< the commit has gone through
const Owner fenced{"id", "a", 8};  ///< the source has taken the next epoch, or was given it

Claim source() {
  return Claim({Role::source, "a", "b", before});
}

Claim destination() {
  return Claim({Role::destination, "b", "a", before});
}

bool swaps(const Claim::Action& action, const std::string& to) {
  const auto* swap = std::get_if<Claim::Swap>(&action);
  return swap != nullptr && swap->expected == before && swap->to == to;
}

bool settles(const Claim::Action& action, Fate fate) {
  const auto* settle = std::get_if<Claim::Settle>(&action);
  return settle != nullptr && settle->fate == fate;
}

bool looks(const Claim::Action& action) {
  return std::holds_alternative<Claim::Look>(action);
}

bool nothing(const Claim::Action& action) {
  return std::holds_alternative<Claim::Nothing>(action);
}

TEST(Ownership, ACommitIsOneSwap) {
  Claim claim = source();
  EXPECT_TRUE(swaps(claim.step(Claim::Commit{}), "b"));
  EXPECT_TRUE(settles(claim.step(Claim::Swapped{true}), Fate::there));
  EXPECT_EQ(claim.fate(), Fate::there);
  EXPECT_FALSE(claim.doubtful());
}

TEST(Ownership, OnlyTheSourceCommitsAndOnlyOnce) {
  Claim claim = source(), other = destination();
  EXPECT_TRUE(nothing(other.step(Claim::Commit{})));
  EXPECT_TRUE(swaps(claim.step(Claim::Commit{}), "b"));
  EXPECT_TRUE(nothing(claim.step(Claim::Commit{})));
}

TEST(Ownership, WhoWasFirstSaysTheRecord) {
  Claim claim = source();
  claim.step(Claim::Commit{});
  EXPECT_TRUE(looks(claim.step(Claim::Swapped{false})));
  EXPECT_TRUE(settles(claim.step(Claim::Seen{fenced}), Fate::here))
      << "its destination has given up, and said so there";
}

TEST(Ownership, ALostYesIsFoundInTheRecord) {
  Claim claim = source();
  claim.step(Claim::Commit{});
  // Carried out twice, say: the answer that comes is the second one's.
  EXPECT_TRUE(looks(claim.step(Claim::Swapped{false})));
  EXPECT_TRUE(settles(claim.step(Claim::Seen{taken}), Fate::there));
}

TEST(Ownership, WithoutAnAnswerItWaitsAndLooks) {
  Claim claim = source();
  claim.step(Claim::Commit{});
  EXPECT_TRUE(std::holds_alternative<Claim::Wait>(claim.step(Claim::NoAnswer{})));
  EXPECT_TRUE(claim.doubtful());
  EXPECT_TRUE(nothing(claim.step(Claim::Doubt{}))) << "it waits already";
  EXPECT_TRUE(looks(claim.step(Claim::Tick{})));
  EXPECT_TRUE(nothing(claim.step(Claim::Tick{}))) << "it has asked";
  EXPECT_TRUE(settles(claim.step(Claim::Seen{taken}), Fate::there));
  EXPECT_FALSE(claim.doubtful());
}

TEST(Ownership, WhoGoesOnTakesTheEpochFromALateCommit) {
  Claim claim = source();
  claim.step(Claim::Commit{});
  claim.step(Claim::NoAnswer{});
  claim.step(Claim::Tick{});
  EXPECT_TRUE(swaps(claim.step(Claim::Seen{before}), "a")) << "not here yet: the swap may still be on its way";
  EXPECT_TRUE(settles(claim.step(Claim::Swapped{true}), Fate::here));
}

TEST(Ownership, AFenceThatComesTooLate) {
  Claim claim = source();
  claim.step(Claim::Doubt{});
  claim.step(Claim::Seen{before});
  EXPECT_TRUE(looks(claim.step(Claim::Swapped{false})));
  EXPECT_TRUE(settles(claim.step(Claim::Seen{taken}), Fate::there));
}

TEST(Ownership, AFenceWithoutAnAnswer) {
  Claim claim = destination();
  claim.step(Claim::Doubt{});
  EXPECT_TRUE(swaps(claim.step(Claim::Seen{before}), "a")) << "the fence is the source's, whoever takes it";
  claim.step(Claim::NoAnswer{});
  EXPECT_TRUE(looks(claim.step(Claim::Tick{})));
  EXPECT_TRUE(settles(claim.step(Claim::Seen{fenced}), Fate::there));
}

TEST(Ownership, ADestinationBelievesItsSource) {
  Claim went = destination(), stayed = destination();
  EXPECT_TRUE(settles(went.step(Claim::Told{true}), Fate::here));
  EXPECT_TRUE(settles(stayed.step(Claim::Told{false}), Fate::there));
}

TEST(Ownership, ADestinationBelievesItInDoubtToo) {
  Claim claim = destination();
  claim.step(Claim::Doubt{});
  claim.step(Claim::Seen{before});
  EXPECT_TRUE(settles(claim.step(Claim::Told{true}), Fate::here)) << "the fence will find that it is too late";
  EXPECT_TRUE(nothing(claim.step(Claim::Swapped{false})));
}

TEST(Ownership, ASourceBelievesNobody) {
  Claim claim = source();
  claim.step(Claim::Commit{});
  EXPECT_TRUE(nothing(claim.step(Claim::Told{true})));
  EXPECT_TRUE(nothing(claim.step(Claim::Told{false})));
  EXPECT_FALSE(claim.fate());
}

TEST(Ownership, ADestinationInDoubtIsToldByTheRecord) {
  Claim claim = destination();
  EXPECT_TRUE(looks(claim.step(Claim::Doubt{})));
  EXPECT_TRUE(nothing(claim.step(Claim::Doubt{}))) << "it has asked";
  EXPECT_TRUE(settles(claim.step(Claim::Seen{taken}), Fate::here));
}

TEST(Ownership, LaterEpochsBelongToLaterCopies) {
  for (const Owner& record : {Owner{"id", "a", 9}, Owner{"id", "b", 9}, Owner{"id", "c", 8}, Owner{"id", "a", 6}}) {
    Claim mine = source(), theirs = destination();
    mine.step(Claim::Doubt{});
    theirs.step(Claim::Doubt{});
    EXPECT_TRUE(settles(mine.step(Claim::Seen{record}), Fate::gone)) << record.node << record.epoch;
    EXPECT_TRUE(settles(theirs.step(Claim::Seen{record}), Fate::gone)) << record.node << record.epoch;
  }
}

TEST(Ownership, WithoutARecordNobodyIsThePod) {
  Claim none = source(), another = source();
  none.step(Claim::Doubt{});
  EXPECT_TRUE(settles(none.step(Claim::Seen{}), Fate::gone));
  another.step(Claim::Doubt{});
  EXPECT_TRUE(settles(another.step(Claim::Seen{Owner{"another", "a", 7}}), Fate::gone)) << "the name was given again";
}

TEST(Ownership, AnOperatorIsHeardOnlyInDoubt) {
  Claim claim = source();
  EXPECT_TRUE(nothing(claim.step(Claim::Resolved{true})));
  claim.step(Claim::Commit{});
  EXPECT_TRUE(nothing(claim.step(Claim::Resolved{true}))) << "the store hasn't been asked in vain";
  claim.step(Claim::NoAnswer{});
  EXPECT_TRUE(settles(claim.step(Claim::Resolved{true}), Fate::here));
}

TEST(Ownership, AStoreThatAnswersAgainDecides) {
  Claim claim = destination();
  claim.step(Claim::Doubt{});
  claim.step(Claim::NoAnswer{});
  ASSERT_TRUE(claim.doubtful());
  claim.step(Claim::Tick{});
  EXPECT_TRUE(swaps(claim.step(Claim::Seen{before}), "a"));
  EXPECT_FALSE(claim.doubtful());
  // Its fence is on its way: whoever went on here now would run beside the source.
  EXPECT_TRUE(nothing(claim.step(Claim::Resolved{true})));
  EXPECT_TRUE(settles(claim.step(Claim::Swapped{true}), Fate::there));
}

TEST(Ownership, AfterItsFateNothingChangesIt) {
  Claim claim = destination();
  claim.step(Claim::Told{true});
  const Claim settled = claim;
  for (const Claim::Event& event : std::initializer_list<Claim::Event>{
           Claim::Told{false}, Claim::Doubt{}, Claim::Seen{fenced}, Claim::Swapped{false}, Claim::NoAnswer{},
           Claim::Tick{}, Claim::Resolved{false}, Claim::Commit{}}) {
    EXPECT_TRUE(nothing(claim.step(event)));
    EXPECT_EQ(claim, settled);
  }
}

TEST(Ownership, AnswersToNoQuestionSayNothing) {
  Claim claim = source();
  EXPECT_TRUE(nothing(claim.step(Claim::Swapped{true})));
  EXPECT_TRUE(nothing(claim.step(Claim::Seen{taken})));
  EXPECT_TRUE(nothing(claim.step(Claim::NoAnswer{})));
  claim.step(Claim::Commit{});
  EXPECT_TRUE(nothing(claim.step(Claim::Seen{fenced}))) << "it has asked for a swap, not for a look";
}

TEST(Ownership, PausesGrowUpToASecond) {
  Claim claim = source();
  claim.step(Claim::Doubt{});
  Time last(0);
  for (int i = 0; i < 20; ++i) {
    const auto action = claim.step(Claim::NoAnswer{});
    ASSERT_TRUE(std::holds_alternative<Claim::Wait>(action));
    const Time pause = std::get<Claim::Wait>(action).pause;
    EXPECT_GE(pause, last);
    EXPECT_LE(pause, Time(1000));
    last = pause;
    claim.step(Claim::Tick{});
  }
  EXPECT_EQ(last, Time(1000));
}

}  // namespace
}  // namespace godwit::control
