#pragma once

#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "migrate/claim.hpp"

namespace godwit::node {

/// Frozen copies of which this node can't tell whether they are the pod: the store doesn't answer. Who waits for it
/// waits here, and hears an operator's word. Thread-safe.
class Doubts {
 public:
  struct View {
    std::string pod;
    std::string peer;       ///< has the other copy
    bool arriving = false;  ///< to this node
    std::chrono::system_clock::time_point since;
  };

  /// One copy's doubt: is listed from the first call of `wait` until this goes.
  class Doubt {
   public:
    ~Doubt();
    /// A Tick after the pause; Resolved as soon as an operator has decided; nothing when the daemon is about to end.
    /// Who hears it obeys: the word stands in the pod's directory then (pod::write_word), for whatever daemon comes to
    /// tell the record.
    std::optional<control::Claim::Event> wait(control::Time pause);

   private:
    friend class Doubts;
    Doubt(Doubts&, View, std::string directory);
    Doubts& doubts_;
    View view_;
    const std::string directory_;  ///< the pod's
    bool listed_ = false;
    std::optional<bool> word_;
  };

  /// `directory`: the pod's, on this node.
  std::shared_ptr<Doubt> doubt(const std::string& pod, const std::string& directory, const std::string& peer,
                               bool arriving);
  [[nodiscard]] std::vector<View> list() const;
  /// `not_found` when the pod is in no doubt on this node.
  Result<void> resolve(const std::string& pod, bool here);
  /// From here on nobody waits.
  void stop();

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Doubt*> waiting_;
  bool stopping_ = false;
};

}  // namespace godwit::node
