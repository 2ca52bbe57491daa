#include "migrate/estimate.hpp"

#include <gtest/gtest.h>

namespace godwit::migrate {
namespace {

Survey quiet() {
  return {.processes = 1,
          .threads = 2,
          .descriptors = 5,
          .sockets = 1,
          .mappings = 30,
          .resident_pages = 25'600,
          .sampled_pages = 4096,
          .changed_pages = 0,
          .sample_us = 100'000,
          .link_bytes_per_second = 100'000'000,
          .round_trip_us = 200};
}

TEST(Estimate, OfAPodThatWritesNothing) {
  const auto cost = estimate(Strategy::precopy, quiet());
  EXPECT_GE(cost.bytes, 25'600U * 4096);
  EXPECT_LT(cost.bytes, 25'600U * 4200);
  EXPECT_GT(cost.freeze_us, 500U);
  EXPECT_LT(cost.freeze_us, 10'000U);
}

TEST(Estimate, FreezeCopiesAllWhileNothingRuns) {
  // 100 MiB over 100 MB/s.
  const auto cost = estimate(Strategy::freeze, quiet());
  EXPECT_GT(cost.freeze_us, 1'000'000U);
  EXPECT_LT(cost.freeze_us, 1'200'000U);
}

TEST(Estimate, OnReferenceNothingIsWaitedFor) {
  EXPECT_LT(estimate(Strategy::postcopy, quiet()).freeze_us, 10'000U);
}

TEST(Estimate, WritingCostsRoundsAndFreeze) {
  auto busy = quiet();
  busy.changed_pages = 400;
  const auto calm = estimate(Strategy::precopy, quiet()), cost = estimate(Strategy::precopy, busy);
  EXPECT_GT(cost.bytes, calm.bytes);
  EXPECT_GT(cost.freeze_us, calm.freeze_us);
  // Written faster than the link takes: the automatic choice doesn't wait for it in the freeze.
  EXPECT_LT(estimate(Strategy::automatic, busy).freeze_us, cost.freeze_us);
}

TEST(Estimate, MoreOfAnythingCostsMore) {
  const auto before = estimate(Strategy::precopy, quiet()).freeze_us;
  for (auto member :
       {&Survey::processes, &Survey::threads, &Survey::descriptors, &Survey::sockets, &Survey::round_trip_us}) {
    auto more = quiet();
    more.*member += 100;
    EXPECT_GT(estimate(Strategy::precopy, more).freeze_us, before);
  }
}

TEST(Estimate, NeverNothing) {
  const auto cost = estimate(Strategy::automatic, Survey{});
  EXPECT_GT(cost.freeze_us, 0U);
  EXPECT_GT(cost.bytes, 0U);
}

TEST(Estimate, DirtyPagesAreThoseOfTheSampleForAll) {
  auto half = quiet();
  half.changed_pages = 2048;
  EXPECT_EQ(dirty_pages_per_second(half), 128'000U);
  EXPECT_EQ(dirty_pages_per_second(Survey{}), 0U);
}

}  // namespace
}  // namespace godwit::migrate
