#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "node/json.hpp"
#include "store/store.hpp"

namespace godwit::node {

class Starter;

/// This node as the others see it: who it is, what it has to give, what it carries.
Json describe_node(const Config&, const Pods&, const Starter&);

/// Keeps a node in the cluster's registry: a note of kind "node" in the store, under the node's name, that is written
/// again every few seconds. Its lease ends soon after the last time, and the node is away. Ended cleanly, it says so.
class Registry {
 public:
  static constexpr std::chrono::seconds interval{3};
  static constexpr std::chrono::seconds lease{10};

  /// `describe` is called on a thread of this object until it is destroyed.
  Registry(store::Store&, std::string node, std::function<Json()> describe);
  ~Registry();

  /// Whether the store took the last note.
  [[nodiscard]] bool store_answers() const { return store_answers_; }

 private:
  void work();
  bool write(Json);

  store::Store& store_;
  const std::string node_;
  const std::function<Json()> describe_;
  std::atomic<bool> store_answers_ = true;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::thread thread_;
};

/// All nodes that were ever in the registry, by name. "state" is "away" where the note's lease is over, or its node has
/// ended; "seen_ms" is when it was written, by that node's clock.
Result<std::map<std::string, Json>> registered_nodes(store::Store&);

/// Puts first whom the registry knows to be there and to take guests, the least load for each processor first. Nodes of
/// which it says nothing come next, then those that it says are away, are being emptied or want no guests.
void sort_by_load(std::vector<std::string>& nodes, const std::map<std::string, Json>& registered);

/// Takes a node out of the registry. `not_found`; `refused` while it is there: it would write itself again.
Result<void> forget_node(store::Store&, const std::string& name);

}  // namespace godwit::node
