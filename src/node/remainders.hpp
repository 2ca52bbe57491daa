#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "migrate/remainder.hpp"
#include "node/links.hpp"
#include "pod/pod.hpp"
#include "store/store.hpp"

namespace godwit::node {

/// What pods that run elsewhere have left on this node: frozen memory that their destinations come back for, when the
/// connections of the move have broken or a daemon has died since. Each ends when the destination has all, or doesn't
/// need it any more; nobody's memory is given up because somebody can't be reached. Thread-safe.
class Remainders {
 public:
  Remainders(const Links&, store::Store&, std::string state_dir);
  ~Remainders();

  struct View {
    std::string pod, move, destination;
    std::chrono::system_clock::time_point since;
    bool asked = false;  ///< the destination is being served right now
  };
  [[nodiscard]] std::vector<View> list() const;

  /// A pod that has moved to `destination` by `move`, in the freezer, untraced. Destroyed when it is over.
  void add(std::shared_ptr<pod::Pod>, const std::string& move, const std::string& destination);
  /// The service `pages:MOVE`: answers until the connection ends.
  void serve(Stream&, const std::string& peer, const std::string& move);
  /// The service `owed:MOVE`, the other way round: says whether a pod here is still owed pages by that move.
  void serve_question(Stream&, const std::string& peer, const std::string& move) const;
  /// An operator gives it up: pages that the pod hasn't fetched are lost, and it ends where it is. `not_found`.
  Result<void> drop(const std::string& pod);

 private:
  struct Entry {
    std::shared_ptr<pod::Pod> pod;
    std::shared_ptr<const migrate::Remainder> memory;  ///< none as long as it couldn't be opened: kept all the same
    std::optional<std::uint64_t> epoch;  ///< of its record before the move; none when nobody can tell any more
    View view;
    int serving = 0;
    bool over = false;
  };
  std::shared_ptr<Entry> find(const std::string& move) const;
  Result<std::shared_ptr<const migrate::Remainder>> memory_of(Entry&);
  void end(const std::shared_ptr<Entry>&);
  bool needed(const Entry&) const;
  void watch();

  const Links& links_;
  store::Store& store_;
  const std::string state_dir_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;  ///< by move
  bool stopping_ = false;
  std::thread watcher_;
};

}  // namespace godwit::node
