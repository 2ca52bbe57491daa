#include "store/store.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "etcd_server.hpp"

namespace godwit::store {
namespace {

using namespace std::chrono_literals;

/// The same of every store.
class StoreTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/godwit-store-XXXXXX";
    directory_ = mkdtemp(pattern);
    if (GetParam() == std::string("etcd")) {
      const std::string server = EtcdServer::shared();
      if (server.empty()) GTEST_SKIP() << "no etcd on this machine";
      place_ = fmt::format("etcd://{}{}", server, directory_);
    }
    store_ = open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  std::unique_ptr<Store> open() {
    auto store = place_.empty() ? open_sqlite(path()) : open_etcd(place_);
    EXPECT_TRUE(store) << store.error().message();
    return std::move(*store);
  }
  std::string path() const { return directory_ + "/pods.db"; }

  std::string directory_, place_;
  std::unique_ptr<Store> store_;
  Record redis_{"redis", "id-1", "a", 1, "10.66.0.21", "a"};
};

INSTANTIATE_TEST_SUITE_P(Each, StoreTest, testing::Values("sqlite", "etcd"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(StoreTest, RecordIsReadBackAlsoAfterReopening) {
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

TEST_P(StoreTest, NamesAndAddressesAreUnique) {
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

TEST_P(StoreTest, PodsWithoutAddressDontCollide) {
  EXPECT_TRUE(store_->create({"one", "id-1", "a", 1, "", "a"}));
  EXPECT_TRUE(store_->create({"two", "id-2", "a", 1, "", "a"}));
}

TEST_P(StoreTest, MoveIsACompareAndSwap) {
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

TEST_P(StoreTest, OneOfManyWinsAndTheEpochNeverGoesBack) {
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

TEST_P(StoreTest, RemoveNeedsTheCurrentOwner) {
  ASSERT_TRUE(store_->create(redis_));
  ASSERT_TRUE(*store_->move(redis_, "b"));
  EXPECT_FALSE(*store_->remove(redis_));
  ASSERT_TRUE(*store_->get("redis"));
  EXPECT_TRUE(*store_->remove(**store_->get("redis")));
  EXPECT_FALSE(*store_->get("redis"));
  EXPECT_TRUE(store_->create(redis_)) << "name and address are free again";
}

TEST_P(StoreTest, RemoveAndMoveNeedNoMoreThanIdOwnerAndEpoch) {
  ASSERT_TRUE(store_->create(redis_));
  Record short_one{.pod = "redis", .id = "id-1", .owner = "a", .epoch = 1};
  EXPECT_TRUE(*store_->move(short_one, "b"));
  EXPECT_EQ((**store_->get("redis")).address, "10.66.0.21");
  short_one.owner = "b";
  short_one.epoch = 2;
  EXPECT_TRUE(*store_->remove(short_one));
  EXPECT_TRUE(store_->create({"other", "id-2", "a", 1, "10.66.0.21", "a"})) << "its address is free as well";
}

TEST_P(StoreTest, OfManyThatWantANameOrAnAddressOneGetsIt) {
  auto second = open();
  std::atomic<int> names = 0, addresses = 0;
  const auto race = [&](Store& store, const std::string& me) {
    for (int i = 0; i < 20; i++) {
      names += store.create({fmt::format("name-{}", i), me, me, 1, "", me}).has_value();
      addresses += store.create({fmt::format("{}-{}", me, i), me, me, 1, fmt::format("10.1.0.{}", i), me}).has_value();
    }
  };
  std::thread one([&] { race(*store_, "a"); });
  std::thread two([&] { race(*second, "b"); });
  one.join();
  two.join();
  EXPECT_EQ(names, 20);
  EXPECT_EQ(addresses, 20);
  EXPECT_EQ(store_->list()->size(), 40u);
}

TEST_P(StoreTest, AChangeOfARecordIsWaitedFor) {
  const auto begin = store_->changed(0, 0ms);
  ASSERT_TRUE(begin) << begin.error().message();
  EXPECT_EQ(store_->changed(*begin, 50ms).value_or(0), *begin) << "nothing has happened";
  ASSERT_TRUE(store_->put({"node", "a", "{}", false}));
  EXPECT_EQ(store_->changed(*begin, 50ms).value_or(0), *begin) << "a note is no record";
  std::uint64_t state = *begin;
  const auto after = [&](const std::function<void()>& change) {
    std::thread later([&] {
      std::this_thread::sleep_for(100ms);
      change();
    });
    const auto now = store_->changed(state, 30s);
    later.join();
    ASSERT_TRUE(now) << now.error().message();
    EXPECT_NE(*now, state);
    state = *now;
  };
  after([&] { ASSERT_TRUE(store_->create(redis_)); });
  after([&] { ASSERT_TRUE(*store_->move(redis_, "b")); });
  after([&] { ASSERT_TRUE(*store_->remove({"redis", "id-1", "b", 2, "", ""})); });
  EXPECT_NE(store_->changed(*begin, 30s).value_or(0), *begin) << "what happened before is seen as well";
  EXPECT_EQ(store_->changed(state, 50ms).value_or(0), state);
}

TEST_P(StoreTest, ListsAreSortedAndWhole) {
  for (int i = 0; i < 600; i++)
    ASSERT_TRUE(store_->put({"move", fmt::format("{:04}", 599 - i), fmt::format("{}", 599 - i), false}));
  const auto all = store_->notes("move");
  ASSERT_TRUE(all) << all.error().message();
  ASSERT_EQ(all->size(), 600u);
  for (int i = 0; i < 600; i++) EXPECT_EQ((*all)[i].value, fmt::format("{}", i));
}

TEST_P(StoreTest, NotesAreWrittenOverFoundAndForgotten) {
  ASSERT_TRUE(store_->put({"node", "a", "1", false}));
  ASSERT_TRUE(store_->put({"node", "a", "2", false}));
  ASSERT_TRUE(store_->put({"node", "ab", "3", false}));
  ASSERT_TRUE(store_->put({"report", "a", "4", false}));
  EXPECT_EQ(store_->notes("node")->size(), 2u);
  ASSERT_EQ(store_->notes("node", "a")->size(), 1u);
  EXPECT_EQ(store_->notes("node", "a")->front().value, "2");
  EXPECT_FALSE(store_->notes("node", "a")->front().away);
  EXPECT_TRUE(store_->notes("node", "b")->empty());
  ASSERT_TRUE(store_->erase("node", "a"));
  EXPECT_EQ(store_->notes("node")->size(), 1u);
  EXPECT_EQ(store_->notes("report")->size(), 1u);
  store_ = open();
  EXPECT_EQ(store_->notes("report")->front().value, "4");
}

TEST_P(StoreTest, TheOldestNotesGo) {
  for (int i = 0; i < 12; i++) ASSERT_TRUE(store_->put({"move", fmt::format("{:02}", i), "x", false}, {.most = 5}));
  const auto left = store_->notes("move");
  ASSERT_EQ(left->size(), 5u);
  EXPECT_EQ(left->front().key, "07");
  EXPECT_EQ(left->back().key, "11");
}

TEST_P(StoreTest, WhoDoesntRenewALeaseIsAwayAndNotForgotten) {
  const Note node{"node", "a", "here", false};
  ASSERT_TRUE(store_->put(node, {.lease = 2s}));
  EXPECT_FALSE(store_->notes("node")->front().away);
  for (int i = 0; i < 3; i++) {
    std::this_thread::sleep_for(1s);
    ASSERT_TRUE(store_->put(node, {.lease = 2s}));
    EXPECT_FALSE(store_->notes("node")->front().away);
  }
  // etcd grants no lease shorter than two seconds or so, and looks at them now and then.
  const auto end = std::chrono::steady_clock::now() + 20s;
  while (!store_->notes("node")->front().away && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(50ms);
  ASSERT_EQ(store_->notes("node")->size(), 1u);
  EXPECT_TRUE(store_->notes("node")->front().away);
  EXPECT_EQ(store_->notes("node")->front().value, "here");
  ASSERT_TRUE(store_->put(node, {.lease = 2s}));
  EXPECT_FALSE(store_->notes("node")->front().away) << "it is back";
}

TEST_P(StoreTest, RefusesWhatIsIncompleteOrTooLong) {
  EXPECT_EQ(store_->create({"", "id", "a", 1, "", "a"}).error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->create({"x", "id", std::string(5000, 'a'), 1, "", "a"}).error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->move(redis_, "").error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->put({"no/de", "a", "", false}).error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->put({"node", "", "", false}).error().kind, ErrorKind::invalid);
  EXPECT_EQ(store_->put({"node", "a", std::string(value_limit + 1, 'x'), false}).error().kind, ErrorKind::invalid);
}

class SqliteTest : public StoreTest {};
INSTANTIATE_TEST_SUITE_P(Only, SqliteTest, testing::Values("sqlite"));

TEST_P(SqliteTest, FilesArePrivateAndBrokenOnesAreRefused) {
  struct stat status {};
  for (const std::string& file : {path(), path() + "-notes"}) {
    ASSERT_EQ(stat(file.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u);
  }
  const std::string broken = directory_ + "/broken.db";
  FILE* file = fopen(broken.c_str(), "w");
  fputs(std::string(4096, 'x').c_str(), file);
  fclose(file);
  EXPECT_FALSE(open_sqlite(broken));
  EXPECT_FALSE(open_sqlite("/proc/nowhere/pods.db"));
}

/// A commit never has to make the log longer: it is written back in the background.
TEST_P(SqliteTest, TheLogIsWrittenBackAndDoesntGrow) {
  const auto log_size = [&] { return std::filesystem::file_size(path() + "-wal"); };
  const auto before = log_size();
  ASSERT_GT(before, 4'000'000u) << "room is made at the start";
  ASSERT_TRUE(store_->create(redis_));
  Record record = redis_;
  for (int i = 0; i < 3000; i++) {
    ASSERT_TRUE(*store_->move(record, "b"));
    record.owner = "b";
    record.epoch++;
    // As often as it looks; a move a second is what it is made for.
    if (i % 700 == 699) std::this_thread::sleep_for(2500ms);
  }
  EXPECT_EQ(log_size(), before);
  EXPECT_EQ((**store_->get("redis")).epoch, 3001u);
}

}  // namespace
}  // namespace godwit::store
