#include "store/store.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <thread>

namespace godwit::store {
namespace {

class SqliteStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/godwit-store-XXXXXX";
    directory_ = mkdtemp(pattern);
    store_ = open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  std::unique_ptr<Store> open() {
    auto store = open_sqlite(path());
    EXPECT_TRUE(store) << store.error().message();
    return std::move(*store);
  }
  std::string path() const { return directory_ + "/pods.db"; }

  std::string directory_;
  std::unique_ptr<Store> store_;
  Record redis_{"redis", "id-1", "a", 1, "10.66.0.21", "a"};
};

TEST_F(SqliteStoreTest, RecordIsReadBackAlsoAfterReopening) {
  ASSERT_TRUE(store_->create(redis_));
  store_ = open();
  const auto found = store_->get("redis");
  ASSERT_TRUE(found && *found);
  EXPECT_EQ((*found)->id, "id-1");
  EXPECT_EQ((*found)->owner, "a");
  EXPECT_EQ((*found)->epoch, 1u);
  EXPECT_EQ((*found)->address, "10.66.0.21");
  EXPECT_EQ((*found)->home, "a");
  EXPECT_FALSE(*store_->get("nginx"));
  EXPECT_EQ(store_->list()->size(), 1u);
}

TEST_F(SqliteStoreTest, NamesAndAddressesAreUnique) {
  ASSERT_TRUE(store_->create(redis_));
  const auto name = store_->create({"redis", "id-2", "b", 1, "10.66.0.22", "b"});
  ASSERT_FALSE(name);
  EXPECT_EQ(name.error().kind, ErrorKind::busy);
  EXPECT_NE(name.error().message().find("node a"), std::string::npos);
  const auto address = store_->create({"nginx", "id-2", "b", 1, "10.66.0.21", "b"});
  ASSERT_FALSE(address);
  EXPECT_EQ(address.error().kind, ErrorKind::busy);
  EXPECT_NE(address.error().message().find("redis"), std::string::npos);
  EXPECT_FALSE(*store_->get("nginx"));
}

TEST_F(SqliteStoreTest, PodsWithoutAddressDontCollide) {
  EXPECT_TRUE(store_->create({"one", "id-1", "a", 1, "", "a"}));
  EXPECT_TRUE(store_->create({"two", "id-2", "a", 1, "", "a"}));
}

TEST_F(SqliteStoreTest, MoveIsACompareAndSwap) {
  ASSERT_TRUE(store_->create(redis_));
  Record stale = redis_;
  stale.id = "another";
  EXPECT_FALSE(*store_->move(stale, "b"));
  stale = redis_;
  stale.owner = "c";
  EXPECT_FALSE(*store_->move(stale, "b"));
  stale = redis_;
  stale.epoch = 2;
  EXPECT_FALSE(*store_->move(stale, "b"));
  EXPECT_TRUE(*store_->move(redis_, "b"));
  const auto moved = *store_->get("redis");
  EXPECT_EQ(moved->owner, "b");
  EXPECT_EQ(moved->epoch, 2u);
  EXPECT_FALSE(*store_->move(redis_, "c")) << "the same expectation holds once";
  EXPECT_FALSE(*store_->move({"nginx", "id-9", "a", 1, "", "a"}, "b"));
}

TEST_F(SqliteStoreTest, OneOfManyWinsAndTheEpochNeverGoesBack) {
  ASSERT_TRUE(store_->create(redis_));
  auto second = open();
  constexpr int swaps = 50;
  std::atomic<int> won = 0;
  const auto race = [&](Store& store, const std::string& me) {
    std::uint64_t last = 0;
    while (last < 1 + swaps) {
      const auto record = store.get("redis");
      ASSERT_TRUE(record) << record.error().message();
      ASSERT_GE((*record)->epoch, last);
      last = (*record)->epoch;
      if (last >= 1 + swaps) return;
      const auto moved = store.move(**record, me);
      ASSERT_TRUE(moved) << moved.error().message();
      won += *moved;
    }
  };
  std::thread one([&] { race(*store_, "b"); });
  std::thread two([&] { race(*second, "c"); });
  one.join();
  two.join();
  EXPECT_EQ((*store_->get("redis"))->epoch, 1u + static_cast<unsigned>(won.load()));
}

TEST_F(SqliteStoreTest, RemoveNeedsTheCurrentOwner) {
  ASSERT_TRUE(store_->create(redis_));
  ASSERT_TRUE(*store_->move(redis_, "b"));
  EXPECT_FALSE(*store_->remove(redis_));
  ASSERT_TRUE(*store_->get("redis"));
  EXPECT_TRUE(*store_->remove(**store_->get("redis")));
  EXPECT_FALSE(*store_->get("redis"));
  EXPECT_TRUE(store_->create(redis_)) << "name and address are free again";
}

TEST_F(SqliteStoreTest, RefusesIncompleteRecordsAndBrokenFiles) {
  EXPECT_EQ(store_->create({"", "id", "a", 1, "", "a"}).error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->create({"x", "id", std::string(5000, 'a'), 1, "", "a"}).error().kind, ErrorKind::invalid);
  struct stat status {};
  ASSERT_EQ(stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const std::string broken = directory_ + "/broken.db";
  FILE* file = fopen(broken.c_str(), "w");
  fputs(std::string(4096, 'x').c_str(), file);
  fclose(file);
  EXPECT_FALSE(open_sqlite(broken));
  EXPECT_FALSE(open_sqlite("/proc/nowhere/pods.db"));
}

}  // namespace
}  // namespace godwit::store
