#include "migrate/migrate.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "fault_points.hpp"
#include "pod/log_segments.hpp"
#include "pod/zygote.hpp"

namespace godwit::migrate {
namespace {

/// What happens, in its order, on whatever thread.
class Story {
 public:
  void tell(std::string_view what) {
    const std::scoped_lock lock(mutex_);
    told_.emplace_back(what);
  }
  /// Between these two, each told once. Nothing when they weren't told in this order.
  std::optional<std::vector<std::string>> between(std::string_view first, std::string_view last) {
    const std::scoped_lock lock(mutex_);
    const auto begin = std::ranges::find(told_, first), end = std::ranges::find(told_, last);
    if (begin >= end || end == told_.end()) return {};
    return std::vector<std::string>(begin + 1, end);
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> told_;
};

/// Tells of every call.
class ToldStore final : public store::Store {
 public:
  ToldStore(store::Store& store, Story& story) : store_(store), story_(story) {}
  Result<void> create(const store::Record& record) override { return told("create").create(record); }
  Result<std::optional<store::Record>> get(const std::string& pod) override { return told("get").get(pod); }
  Result<std::vector<store::Record>> list() override { return told("list").list(); }
  Result<bool> move(const store::Record& expected, const std::string& owner) override {
    return told("move").move(expected, owner);
  }
  Result<bool> remove(const store::Record& expected) override { return told("remove").remove(expected); }
  Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) override {
    return told("changed").changed(since, limit);
  }
  Result<void> put(const store::Note& note, const store::Keep& keep) override { return told("put").put(note, keep); }
  Result<std::vector<store::Note>> notes(const std::string& kind, const std::string& key) override {
    return told("notes").notes(kind, key);
  }
  Result<void> erase(const std::string& kind, const std::string& key) override {
    return told("erase").erase(kind, key);
  }

 private:
  store::Store& told(const std::string& call) {
    story_.tell("store: " + call);
    return store_;
  }
  store::Store& store_;
  Story& story_;
};

/// Two nodes in one process: directories and cgroups of their own, and socket pairs between them.
class MigrateTest : public ::testing::TestWithParam<std::string> {
 protected:
  struct Node {
    pod::Site site;
    std::shared_ptr<pod::Pod> pod;
  };

  static void SetUpTestSuite() {
    if (geteuid() != 0) return;
    auto started = pod::Zygote::start();
    ASSERT_TRUE(started) << started.error().message();
    zygote = std::make_unique<pod::Zygote>(std::move(*started));
  }
  static void TearDownTestSuite() { zygote.reset(); }

  static std::string cgroup_root() {
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
      std::istringstream fields(line);
      std::string skip, mount;
      fields >> skip >> skip >> skip >> skip >> mount;
      if (line.find(" - cgroup2 ") != std::string::npos) return mount;
    }
    return "/sys/fs/cgroup";
  }

  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "pods need root";
    char pattern[] = "/var/tmp/godwit-migrate-test-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    base = pattern;
    for (const char* name : {"a", "b"}) {
      Node& node = nodes[name];
      node.site.node = name;
      node.site.state_dir = base + "/" + name + "/state";
      node.site.run_dir = base + "/" + name + "/run";
      node.site.cgroup = cgroup_root() + "/godwit-migrate-" + std::to_string(getpid()) + name;
      node.site.zygote = zygote.get();
      std::filesystem::create_directories(node.site.state_dir);
      std::filesystem::create_directories(node.site.run_dir);
      ASSERT_EQ(mkdir(node.site.cgroup.c_str(), 0755), 0);
    }
    auto opened = store::open_sqlite(base + "/store");
    ASSERT_TRUE(opened) << opened.error().message();
    sqlite = std::move(*opened);
    store = std::make_unique<ToldStore>(*sqlite, story);
    fault::seen = [this](std::string_view point) { story.tell(point); };
  }

  void TearDown() override {
    fault::seen = {};
    if (base.empty()) return;
    for (auto& [name, node] : nodes) {
      if (node.pod) {
        EXPECT_TRUE(node.pod->destroy());
      }
      node.pod.reset();
      rmdir((node.site.cgroup + "/pods").c_str());
      EXPECT_EQ(rmdir(node.site.cgroup.c_str()), 0) << "a pod's cgroup is left on " << name;
    }
    std::filesystem::remove_all(base);
  }

  void start(const std::vector<std::string>& arguments) {
    pod::Spec spec;
    spec.name = "traveller";
    spec.id = "traveller-" + std::to_string(getpid());
    spec.home = "a";
    spec.hostname = "traveller";
    spec.program.arguments = arguments;
    spec.program.environment = {"PATH=/usr/bin:/bin"};
    auto created = pod::Pod::create(nodes["a"].site, spec);
    ASSERT_TRUE(created) << created.error().message();
    nodes["a"].pod = std::move(*created);
    auto started = nodes["a"].pod->start(spec.program);
    ASSERT_TRUE(started) << started.error().message();
    ASSERT_TRUE(
        store->create({.pod = spec.name, .id = spec.id, .owner = "a", .epoch = 1, .address = "x", .home = "a"}));
  }

  Result<Report> move(const std::string& from, const std::string& to, const std::string& strategy) {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Stream> offered;
    const Connect connect = [&]() -> Result<Stream> {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("socketpair");
      const std::scoped_lock lock(mutex);
      offered.emplace_back(Fd(pair[1]));
      changed.notify_all();
      return Stream(Fd(pair[0]));
    };
    const Accept accept = [&](std::chrono::milliseconds limit) -> Result<Stream> {
      std::unique_lock lock(mutex);
      if (!changed.wait_for(lock, limit, [&] { return !offered.empty(); }))
        return fail(ErrorKind::timeout, "no connection");
      Stream next = std::move(offered.front());
      offered.pop_front();
      return next;
    };
    Result<Report> received = fail(ErrorKind::failed, "not run");
    std::jthread destination([&] {
      auto control = accept(std::chrono::seconds(10));
      if (!control) return;
      const DestinationSite site{.move = "m",
                                 .peer = from,
                                 .site = nodes[to].site,
                                 .store = *store,
                                 .decide = [](const auto&, const auto&) { return std::vector<std::string>(); },
                                 .arrived = [&](std::shared_ptr<pod::Pod> pod) { nodes[to].pod = std::move(pod); },
                                 .use = [&](const auto& work) { work(*nodes[to].pod); },
                                 .received = [](std::uint64_t) {}};
      received = receive(std::move(*control), accept, site);
    });
    std::atomic<bool> cancelled = false;
    Report report;
    const SourceSite site{.move = "m",
                          .node = from,
                          .destination = to,
                          .store = *store,
                          .cancelled = cancelled,
                          .progress = {},
                          .deadline = {}};
    auto sent = send(*nodes[from].pod, {.strategy = strategy}, connect, site, report);
    destination.join();
    if (!received) std::cerr << "destination: " << received.error().message() << "\n";
    if (sent) nodes[from].pod.reset();
    return sent;
  }

  std::string output(const std::string& on) {
    pod::LogPosition position;
    std::string text;
    (void)nodes[on].pod->flush();
    auto frames = pod::read_log(nodes[on].pod->log_directory(), position);
    if (frames)
      for (const auto& frame : *frames) text.append(frame.bytes.begin(), frame.bytes.end());
    return text;
  }

  bool wait_for(const std::string& on, const std::string& text) {
    for (int i = 0; i < 400; ++i) {
      if (output(on).find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(25));
    }
    return false;
  }

  std::optional<int> wait_end(const std::string& on) {
    for (int i = 0; i < 100; ++i) {
      pollfd wait{nodes[on].pod->events_fd(), POLLIN, 0};
      poll(&wait, 1, 100);
      const auto end = nodes[on].pod->next_end();
      if (end && *end) return *end;
    }
    return std::nullopt;
  }

  static std::unique_ptr<pod::Zygote> zygote;
  std::string base;
  std::map<std::string, Node> nodes;
  std::unique_ptr<store::Store> sqlite, store;  ///< the second tells of what it asks the first
  Story story;
};

std::unique_ptr<pod::Zygote> MigrateTest::zygote;

TEST_P(MigrateTest, AShellGoesThereAndBack) {
  start({"/bin/sh", "-c",
         "echo ready; i=0; while [ $i -lt 60 ]; do sleep 0.05; i=$((i+1)); done; echo counted $i; exit 7"});
  ASSERT_TRUE(wait_for("a", "ready"));
  auto there = move("a", "b", GetParam());
  ASSERT_TRUE(there) << there.error().message();
  std::cerr << GetParam() << ": freeze " << there->freeze_us << " us, total " << there->total_us << " us\n";
  for (const auto& span : there->freeze) std::cerr << "    " << span.name << " " << span.us << "\n";
  auto back = move("b", "a", GetParam());
  ASSERT_TRUE(back) << back.error().message();
  ASSERT_TRUE(wait_for("a", "counted 60")) << output("a");
  const auto end = wait_end("a");
  ASSERT_TRUE(end);
  EXPECT_EQ(WEXITSTATUS(*end), 7);
  EXPECT_EQ(output("a"), "ready\ncounted 60\n");
}

/// From before the first thread is stopped until all run at the new place. Both sides ask the same store.
TEST_P(MigrateTest, OneSwapIsAllThatTheStoreIsAskedInTheFreeze) {
  start({"/bin/sleep", "1000"});
  const auto moved = move("a", "b", GetParam());
  ASSERT_TRUE(moved) << moved.error().message();
  auto told = story.between("source.stopping", "destination.restarted");
  ASSERT_TRUE(told);
  // What is known to lie in a freeze does.
  for (const char* point : {"source.frozen", "source.pinned", "destination.pinned", "source.committed"})
    EXPECT_EQ(std::ranges::count(*told, point), 1) << point;
  std::erase_if(*told, [](const std::string& what) { return !what.starts_with("store: "); });
  EXPECT_EQ(*told, std::vector<std::string>{"store: move"});
}

class SilentDestinationTest : public MigrateTest {};

TEST_P(SilentDestinationTest, KeepsNobodyFromCancelling) {
  start({"/bin/sleep", "1000"});
  std::vector<Stream> silent;
  const Connect connect = [&]() -> Result<Stream> {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("socketpair");
    silent.emplace_back(Fd(pair[1]));
    return Stream(Fd(pair[0]));
  };
  std::atomic<bool> cancelled = false;
  const SourceSite site{.move = "m",
                        .node = "a",
                        .destination = "b",
                        .store = *store,
                        .cancelled = cancelled,
                        .progress = {},
                        .deadline = {}};
  const auto begin = std::chrono::steady_clock::now();
  const std::jthread impatient([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    cancelled = true;
  });
  Report report;
  const auto sent = send(*nodes["a"].pod, {.strategy = GetParam()}, connect, site, report);
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().kind, ErrorKind::cancelled) << sent.error().message();
  // The destination would have had thirty.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
}

INSTANTIATE_TEST_SUITE_P(Strategies, SilentDestinationTest, ::testing::Values("precopy"));
INSTANTIATE_TEST_SUITE_P(Strategies, MigrateTest,
                         ::testing::Values("freeze", "precopy", "postcopy", "hybrid", "eager-dirty", "auto"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace godwit::migrate
