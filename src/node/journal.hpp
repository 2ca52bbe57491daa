#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "node/json.hpp"
#include "store/store.hpp"

namespace godwit::node {

/// The journal of migrations, in the store: every move that was tried, with its report, by the node that it was tried
/// from. Two notes for each: "move", a line of a list, and "report", the whole. The cluster's newest are kept.
///
/// Written by a thread of its own when a move is over, so that no freeze and no command ever waits for it. What the
/// store can't take just now is kept, within limits, as long as this daemon lives. What an ended one didn't come to
/// write of a move that it was in the middle of, the next one does.
class Journal {
 public:
  static constexpr std::uint64_t most = 1000;       ///< moves in the store
  static constexpr std::size_t most_waiting = 256;  ///< moves that the store hasn't taken yet; the oldest go
  static constexpr std::size_t error_limit = 2048;  ///< of an error's text in a list

  enum class Outcome : std::uint8_t {
    moved,
    refused,
    cancelled,
    failed,
    interrupted,  ///< the source's daemon ended under way; the next one says so, unless something is written already
  };
  static Outcome outcome_of(const std::optional<Error>&);

  struct Entry {
    std::string id;  ///< of the move
    std::chrono::system_clock::time_point began;
    std::uint32_t user = 0;  ///< whose pod
    Outcome outcome = Outcome::moved;
    migrate::Report report;
  };

  explicit Journal(store::Store&);
  /// Writes what waits if the store answers.
  ~Journal();

  void add(const Entry&);

 private:
  struct Waiting {
    store::Note report, summary;
    bool belated;  ///< counts only where there is none
  };
  void work();
  Result<void> write(const Waiting&);

  store::Store& store_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Waiting> waiting_;
  bool ending_ = false;
  std::thread thread_;
};

/// The newest moves first, `limit` at most; of this pod only, unless its name is empty, and
/// only what `reader` may see: root all, others what pods of their own did.
Result<Json> list_moves(store::Store&, const pod::User& reader, const std::string& pod, std::size_t limit);

/// The whole report of the move whose id begins with `id`. `not_found`; `invalid` when several do.
Result<Json> find_report(store::Store&, const pod::User& reader, const std::string& id);

}  // namespace godwit::node
