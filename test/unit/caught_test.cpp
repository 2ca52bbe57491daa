#include "base/caught.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace godwit {
namespace {

TEST(Caught, WhatIsThrownIsAnError) {
  EXPECT_EQ(caught([]() -> Result<int> { return 7; }).value(), 7);
  EXPECT_EQ(caught([]() -> Result<int> { return fail(ErrorKind::busy, "later"); }).error().kind, ErrorKind::busy);
  const auto thrown = caught([]() -> Result<void> { throw std::runtime_error("no more threads"); });
  ASSERT_FALSE(thrown);
  EXPECT_EQ(thrown.error().kind, ErrorKind::failed);
  EXPECT_EQ(thrown.error().what, "no more threads");
  const auto without_memory = caught([]() -> Result<std::vector<char>> { throw std::bad_alloc(); });
  ASSERT_FALSE(without_memory);
  EXPECT_NE(without_memory.error().what.find("no memory"), std::string::npos);
}

TEST(Caught, WhatLastsBeginsAnewUntilItReturns) {
  int turns = 0;
  keep_going("a test", [&] {
    if (++turns == 1) throw std::runtime_error("once");
  });
  EXPECT_EQ(turns, 2);
}

}  // namespace
}  // namespace godwit
