#pragma once

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/bugs.hpp"
#include "sim/daemon.hpp"
#include "sim/events.hpp"
#include "sim/ledger.hpp"
#include "sim/machine.hpp"
#include "sim/network.hpp"
#include "sim/random.hpp"
#include "sim/store.hpp"
#include "sim/weather.hpp"

namespace godwit::sim {

std::string node_name(int node);
std::string pod_name(int pod);
/// Of a node's or a pod's name.
int number(const std::string& name);

struct Setup {
  std::uint64_t seed = 1;
  int nodes = 0;                  ///< 0: the seed says
  std::chrono::seconds time{20};  ///< as long as there are faults and wishes; then all is healed, and must end
  Bug bug = Bug::none;
  bool trace = false;
};

struct Line {
  Us at;
  int node, pod;  ///< -1: none in particular
  std::string text;
};

struct Outcome {
  std::optional<Violation> violation;
  std::uint64_t events = 0;
  int nodes = 0;
  Us time{0};
  Counts faults, moves;
  std::vector<Line> trace;
};

/// A cluster in one process and one thread, with nothing in it that its seed doesn't decide.
class World {
 public:
  explicit World(const Setup&);
  Outcome run();

  Random random;
  Weather weather;
  Events events;
  Network network;
  Store store;
  Ledger ledger;
  Counts faults, moves;

  [[nodiscard]] int size() const { return static_cast<int>(machines_.size()); }
  Machine& machine(int index) { return *machines_[static_cast<std::size_t>(index)]; }
  [[nodiscard]] bool bug(Bug bug) const { return setup_.bug == bug; }
  [[nodiscard]] Bug bug() const { return setup_.bug; }
  std::uint64_t next_number() { return ++number_; }

  void deliver(const Message&);
  /// A migration comes to its next phase on that node: now and then something fails just then.
  void point(int node, const char* name);

  template <typename... Args>
  void say(int node, int pod, fmt::format_string<Args...> format, Args&&... args) {
    if (setup_.trace) trace_.push_back({events.now(), node, pod, fmt::format(format, std::forward<Args>(args)...)});
  }

 private:
  // world_faults.cpp
  void fail_now_and_then();
  void kill_daemon(int node);
  void lose_machine(int node);
  void cut_off(std::vector<bool> inside, int only = -1);
  void store_fails();
  void clock_jumps();
  void heal();
  /// At this rate per second, until all is healed.
  void every(double rate, std::function<void()> task);
  // world_users.cpp
  void populate();
  void create(int node);
  void users_want();
  void wish();
  std::vector<std::string> some_nodes(std::size_t most);

  const Setup setup_;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::vector<Line> trace_;
  std::uint64_t number_ = 0;
  int pods_ = 0;
  int last_pod_ = -1;  ///< that somebody wanted to move
  std::vector<std::string> last_to_;
  bool healed_ = false;
};

}  // namespace godwit::sim
