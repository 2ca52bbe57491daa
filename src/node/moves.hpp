#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "migrate/migrate.hpp"
#include "node/journal.hpp"
#include "node/links.hpp"
#include "node/pods.hpp"
#include "node/starter.hpp"

namespace godwit::node {

/// A pod on its way from this node, as it looks to whoever watches.
class Move {
 public:
  const std::string id;
  const std::shared_ptr<LocalPod> pod;
  const std::string wanted;  ///< as the user named it: a node, a group, or any
  const migrate::Options options;
  const std::optional<Deadline> deadline;
  const std::chrono::system_clock::time_point began = std::chrono::system_clock::now();

  struct View {
    std::uint64_t number = 0;  ///< grows with every change
    std::string destination;   ///< empty until a node has agreed
    migrate::Progress progress;
    bool over = false;
    migrate::Report report;      ///< when over
    std::optional<Error> error;  ///< when over, and it failed
  };
  [[nodiscard]] View view() const;
  /// The view as soon as it is newer than `after`, or at the deadline as it is.
  View next(std::uint64_t after, Deadline) const;
  /// Calls it off. False when its commit has begun: that nothing takes back.
  bool cancel();

 private:
  friend class Moves;
  Move(std::string id, std::shared_ptr<LocalPod>, std::string to, migrate::Options, std::optional<Deadline>);
  void change(const std::function<void(View&)>& edit);

  /// Its commit begins, unless it has been called off.
  bool commits();

  std::atomic<bool> cancelled_ = false;
  bool committing_ = false;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  View view_;
  std::thread thread_;
};

/// Migrations from and to this node, each on a thread of its own: ptrace is bound to a thread. Thread-safe.
class Moves {
 public:
  Moves(const Links&, Starter&, Pods&, store::Store&, Doubts&, Remainders&, Journal&, pod::Site);
  ~Moves() { stop(); }

  /// Begins to move a pod away: to a node, one of a group, or any. Goes on whoever watches; its outcome stands in the
  /// Move.
  Result<std::shared_ptr<Move>> begin(const std::shared_ptr<LocalPod>&, const std::string& destination,
                                      const migrate::Options&, std::optional<Deadline> deadline = {});
  /// `not_found` when the pod is in no migration.
  Result<void> cancel(const std::string& pod);

  /// A connection of the migration `id` from `peer`. The first is its control connection: returns when it is all over.
  /// Further ones are put in its queue.
  void incoming(Stream connection, const Sender& sender, const std::string& id);

  /// Cancels what can be cancelled and waits for it; what is committed is waited for up to `patience`.
  void stop(std::chrono::seconds patience = std::chrono::seconds(20));

 private:
  struct Incoming;
  void send(const std::shared_ptr<Move>&, const std::shared_ptr<pod::Pod>&, const std::vector<std::string>& candidates);
  using Refused = std::vector<std::pair<std::string, control::Refusal>>;  ///< by node
  Result<std::string> agree(const Move&, pod::Pod&, const std::vector<std::string>& candidates, const Refused&);
  void nobody_takes(const std::shared_ptr<Move>&, const Error& why);
  std::optional<control::Refusal> send_to(const std::string& destination, const std::shared_ptr<Move>&,
                                          const std::shared_ptr<pod::Pod>&, bool others);
  void conclude(Move&, std::shared_ptr<pod::Pod>, const migrate::Report&);
  void remember_speed(const std::string& destination, const migrate::Report&);
  void collect();

  const Links& links_;
  Starter& starter_;
  Pods& pods_;
  store::Store& store_;
  Doubts& doubts_;
  Remainders& remainders_;
  Journal& journal_;
  const pod::Site site_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::map<std::string, std::shared_ptr<Move>> outgoing_;      ///< by id
  std::map<std::string, std::shared_ptr<Incoming>> incoming_;  ///< by peer and id
  std::map<std::string, std::uint64_t> link_speeds_;  ///< bytes per second, by destination, of the last migration
  bool stopping_ = false;
};

}  // namespace godwit::node
