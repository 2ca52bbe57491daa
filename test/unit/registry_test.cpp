#include "node/registry.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "fickle_store.hpp"

namespace godwit::node {
namespace {

using namespace std::chrono_literals;

class RegistryTest : public testing::Test {
 protected:
  static bool eventually(const std::function<bool()>& holds) {
    for (int tries = 0; tries < 500; tries++) {
      if (holds()) return true;
      std::this_thread::sleep_for(20ms);
    }
    return false;
  }
  std::string state_of(const std::string& node) {
    const auto nodes = registered_nodes(store_);
    if (!nodes || !nodes->contains(node)) return "none";
    return text_field(nodes->at(node), "state").value_or("?");
  }
  FickleStore store_;
};

TEST(SortByLoad, TheLeastLoadForEachProcessorFirst) {
  std::vector<std::string> nodes{"gone", "small", "full", "large", "unknown", "emptied", "closed", "nonsense"};
  sort_by_load(nodes, {{"gone", {{"state", "away"}, {"load", 0}}},
                       {"small", {{"state", "ok"}, {"load", 1.5}, {"cpus", 2}}},
                       {"full", {{"state", "ok"}, {"load", 40.0}, {"cpus", 4}}},
                       {"large", {{"state", "ok"}, {"load", 2.5}, {"cpus", 64}}},
                       {"emptied", {{"state", "ok"}, {"draining", true}}},
                       {"closed", {{"state", "ok"}, {"guests", false}}},
                       {"nonsense", {{"state", 7}, {"load", "much"}, {"cpus", 0}}}});
  EXPECT_EQ(nodes,
            (std::vector<std::string>{"large", "small", "full", "unknown", "gone", "emptied", "closed", "nonsense"}));
}

Json ok() {
  return {{"state", "ok"}, {"cpus", 2}};
}

TEST_F(RegistryTest, ANodeIsThereAndThenAway) {
  {
    const Registry registry(store_, "a", ok);
    EXPECT_TRUE(eventually([&] { return state_of("a") == "ok"; }));
    EXPECT_TRUE(registry.store_answers());
    const auto refused = forget_node(store_, "a");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::refused);
  }
  EXPECT_EQ(state_of("a"), "away");
  EXPECT_EQ(number_field(registered_nodes(store_)->at("a"), "cpus").value_or(0), 2) << "what it was is still known";
  EXPECT_TRUE(forget_node(store_, "a"));
  EXPECT_EQ(state_of("a"), "none");
  EXPECT_EQ(forget_node(store_, "a").error().kind, ErrorKind::not_found);
}

TEST_F(RegistryTest, ALeaseThatIsOverMeansAway) {
  ASSERT_TRUE(store_.put({"node", "b", dump(ok()), false}, {.lease = 1s}));
  EXPECT_EQ(state_of("b"), "ok");
  EXPECT_TRUE(eventually([&] { return state_of("b") == "away"; }));
}

TEST_F(RegistryTest, WhatCantBeReadIsThereAllTheSame) {
  for (const char* value : {"", "[]", "{\"state\": 7}", "{\"name\": \"other\"}"}) {
    ASSERT_TRUE(store_.put({"node", "odd", value, false}));
    EXPECT_EQ(state_of("odd"), "away") << value;
    EXPECT_EQ(registered_nodes(store_)->at("odd")["name"], "odd") << "nobody speaks in another's name";
  }
}

TEST_F(RegistryTest, AStoreThatIsAwayIsNoticedAndNotWaitedFor) {
  store_.away = true;
  {
    const Registry registry(store_, "a", ok);
    EXPECT_TRUE(eventually([&] { return !registry.store_answers(); }));
    EXPECT_FALSE(registered_nodes(store_));
    store_.away = false;
    EXPECT_TRUE(eventually([&] { return registry.store_answers(); }));
    EXPECT_EQ(state_of("a"), "ok");
    store_.away = true;
    EXPECT_TRUE(eventually([&] { return !registry.store_answers(); }));
    store_.calls = 0;
  }
  EXPECT_EQ(store_.calls, 0) << "its end doesn't depend on the store";
}

}  // namespace
}  // namespace godwit::node
