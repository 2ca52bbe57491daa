#include "node/journal.hpp"

#include <gtest/gtest.h>

#include "fickle_store.hpp"

namespace godwit::node {
namespace {

using namespace std::chrono_literals;

Journal::Entry move(int number, const std::string& pod = "redis") {
  Journal::Entry entry{
      .id = fmt::format("{:016x}", number),
      .began = std::chrono::system_clock::time_point(1'700'000'000s + std::chrono::milliseconds(number))};
  entry.report.pod = pod;
  entry.report.source = "a";
  entry.report.destination = "b";
  entry.report.moved = true;
  entry.report.fate = control::Fate::there;
  entry.report.freeze_us = static_cast<std::uint64_t>(number);
  return entry;
}

const pod::User root;

class JournalTest : public testing::Test {
 protected:
  bool has(std::size_t count) {
    for (int tries = 0; tries < 1000; tries++) {
      const auto moves = list_moves(store_, root, "", 10000);
      if (moves && moves->size() == count) return true;
      std::this_thread::sleep_for(20ms);
    }
    return false;
  }
  FickleStore store_;
};

TEST_F(JournalTest, MovesAreListedNewestFirstWithTheirReports) {
  Journal journal(store_);
  journal.add(move(1));
  journal.add(move(2, "nginx"));
  auto failed = move(3);
  failed.outcome = Journal::outcome_of(Error{ErrorKind::refused, "", 0, {}});
  failed.report.fate = control::Fate::here;
  failed.report.moved = false;
  failed.report.error = "too little memory";
  journal.add(failed);
  ASSERT_TRUE(has(3));
  const Json all = *list_moves(store_, root, "", 10);
  EXPECT_EQ(all[0]["outcome"], "refused");
  EXPECT_EQ(all[0]["error"], "too little memory");
  EXPECT_EQ(all[0]["node"], "a");
  EXPECT_EQ(all[1]["pod"], "nginx");
  EXPECT_EQ(all[1]["node"], "b");
  EXPECT_EQ(all[2]["outcome"], "moved");
  EXPECT_EQ(list_moves(store_, root, "", 2)->size(), 2u);
  EXPECT_EQ(list_moves(store_, root, "redis", 10)->size(), 2u);
  EXPECT_EQ(list_moves(store_, root, "redis", 1)->at(0)["freeze_us"], 3);
  const auto report = find_report(store_, root, fmt::format("{:016x}", 2));
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ((*report)["pod"], "nginx");
  EXPECT_TRUE(report->contains("phases"));
  EXPECT_EQ((*report)["began_ms"], 1'700'000'000'002);
}

TEST_F(JournalTest, AReportIsFoundByTheBeginningOfItsId) {
  {
    Journal journal(store_);
    journal.add(move(0x1a));
    journal.add(move(0x1b));
  }
  EXPECT_TRUE(find_report(store_, root, "000000000000001a"));
  EXPECT_EQ(find_report(store_, root, "00").error().kind, ErrorKind::invalid);
  EXPECT_EQ(find_report(store_, root, "f").error().kind, ErrorKind::not_found);
  EXPECT_EQ(find_report(store_, root, "").error().kind, ErrorKind::not_found);
}

TEST_F(JournalTest, WhatTheStoreCantTakeIsWrittenWhenItIsBack) {
  store_.away = true;
  Journal journal(store_);
  const int count = static_cast<int>(Journal::most_waiting) + 10;
  for (int i = 0; i < count; i++) journal.add(move(i));
  store_.away = false;
  ASSERT_TRUE(has(Journal::most_waiting));
  EXPECT_EQ(list_moves(store_, root, "", 1)->at(0)["freeze_us"], count - 1) << "the oldest have gone";
}

TEST_F(JournalTest, WhatWaitsIsWrittenAtTheEnd) {
  {
    Journal journal(store_);
    for (int i = 0; i < 20; i++) journal.add(move(i));
  }
  EXPECT_EQ(list_moves(store_, root, "", 100)->size(), 20u);
  store_.away = true;
  {
    Journal journal(store_);
    journal.add(move(21));
  }
  store_.away = false;
  EXPECT_EQ(list_moves(store_, root, "", 100)->size(), 20u) << "its end doesn't wait for the store";
}

Journal::Entry interrupted(int number) {
  auto entry = move(number);
  entry.outcome = Journal::Outcome::interrupted;
  entry.report.error = "its daemon ended";
  return entry;
}

TEST_F(JournalTest, AnInterruptedMoveIsToldOnceHoweverOften) {
  for (int times = 0; times < 3; times++) {
    Journal journal(store_);
    journal.add(interrupted(1));
  }
  const auto moves = *list_moves(store_, root, "", 10);
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0]["outcome"], "interrupted");
  EXPECT_EQ(moves[0]["node"], "b");
  EXPECT_EQ(find_report(store_, root, interrupted(1).id)->at("node"), "b");
}

TEST_F(JournalTest, WhatTheEndedDaemonHasWrittenStays) {
  {
    Journal journal(store_);
    journal.add(move(1));
  }
  {
    Journal journal(store_);
    journal.add(interrupted(1));
  }
  const auto moves = *list_moves(store_, root, "", 10);
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0]["outcome"], "moved");
  EXPECT_EQ(find_report(store_, root, move(1).id)->at("outcome"), "moved");
}

TEST_F(JournalTest, TheNewestAreKept) {
  for (int i = 0; i < static_cast<int>(Journal::most) + 5; i++)
    ASSERT_TRUE(store_.put({"move", fmt::format("{:012x}-{:016x}", i, i), "{}", false}));
  {
    Journal journal(store_);
    journal.add(move(1));
  }
  EXPECT_EQ(store_.notes("move")->size(), Journal::most);
  EXPECT_EQ(list_moves(store_, root, "redis", 10)->size(), 1u);
}

TEST_F(JournalTest, AReportThatIsTooLongIsCutToItsSummary) {
  auto long_one = move(1);
  long_one.report.refusals.assign(10, std::string(store::value_limit / 8, 'x'));
  long_one.report.error = std::string(store::value_limit, 'y');
  {
    Journal journal(store_);
    journal.add(long_one);
  }
  const auto report = find_report(store_, root, long_one.id);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ((*report)["pod"], "redis");
  EXPECT_TRUE(report->contains("cut"));
  EXPECT_EQ((*report)["error"].get<std::string>().size(), Journal::error_limit);
}

}  // namespace
}  // namespace godwit::node
