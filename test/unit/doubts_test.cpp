#include "node/doubts.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "pod/directory.hpp"

namespace godwit::node {
namespace {

using control::Claim;

constexpr control::Time at_once{0};

class DoubtsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/godwit-doubts-test-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    directory = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory); }

  /// What the doubt hears next; none: nothing new.
  static std::optional<bool> word(Doubts::Doubt& doubt) {
    const auto event = doubt.wait(at_once);
    if (!event || !std::holds_alternative<Claim::Resolved>(*event)) return {};
    return std::get<Claim::Resolved>(*event).here;
  }

  std::string directory;
  Doubts doubts;
};

TEST_F(DoubtsTest, AWordStandsInTheDirectoryBeforeItIsHeard) {
  for (const bool here : {true, false}) {
    const auto doubt = doubts.doubt("p", directory, "elsewhere", true);
    EXPECT_FALSE(doubts.resolve("p", here)) << "nobody waits yet";
    EXPECT_EQ(word(*doubt), std::nullopt);
    ASSERT_TRUE(doubts.resolve("p", here));
    // Given, and not heard: who has asked the store meanwhile goes by what that has said.
    EXPECT_EQ(pod::read_word(directory), std::nullopt);
    EXPECT_EQ(word(*doubt), here);
    EXPECT_EQ(pod::read_word(directory), here);
    ASSERT_TRUE(pod::forget_word(directory));
    EXPECT_EQ(pod::read_word(directory), std::nullopt);
  }
}

TEST_F(DoubtsTest, AWordThatCantBeWrittenDownIsntObeyed) {
  const auto doubt = doubts.doubt("p", directory + "/none", "elsewhere", true);
  EXPECT_EQ(word(*doubt), std::nullopt);
  ASSERT_TRUE(doubts.resolve("p", true));
  EXPECT_EQ(word(*doubt), std::nullopt);
  // It is still in doubt, and may be decided again.
  EXPECT_EQ(doubts.list().size(), 1u);
  EXPECT_TRUE(doubts.resolve("p", true));
}

}  // namespace
}  // namespace godwit::node
