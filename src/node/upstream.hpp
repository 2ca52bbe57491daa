#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "node/stream.hpp"

namespace godwit::node {

/// A client's frames on their way to a pod that may move: kept until the node where the pod is has accepted them, and
/// sent again to the next one otherwise. Two threads: one reads the client, one writes to the pod's stream.
class Upstream {
 public:
  /// Without `input` the client's frames are dropped; that it went is still noticed.
  Upstream(Stream& client, bool input);
  ~Upstream();

  /// The pod's stream from now on; null: none at the moment. When this returns nobody writes to the one before.
  void use(Stream* stream);
  /// So many bytes of an execution's frames have been delivered to whoever reads them: they needn't be kept there.
  void delivered(std::uint64_t place);
  /// What a frame::accepted on that stream says.
  void accepted(const std::string& count);
  /// What was accepted on all streams so far.
  [[nodiscard]] std::uint64_t accepted_in_all() const;
  [[nodiscard]] bool client_gone() const;

 private:
  void read();
  void send();
  void drop(std::uint64_t units);

  Stream& client_;
  const bool input_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<pod::Frame> kept_;
  std::size_t kept_bytes_ = 0;
  std::uint64_t first_ = 0;                ///< number of the frame at the front of `kept_`
  std::uint64_t next_ = 0;                 ///< number of the frame to be sent next
  std::uint64_t acknowledged_ = 0;         ///< on this stream
  std::uint64_t acknowledged_before_ = 0;  ///< on those before
  std::uint64_t delivered_ = 0;            ///< and `delivered_said_` of it on this stream
  std::uint64_t delivered_said_ = 0;
  std::uint64_t streams_ = 0;  ///< how many there have been
  Stream* stream_ = nullptr;
  bool sending_ = false;
  bool gone_ = false;
  bool over_ = false;
  std::thread reader_, sender_;
};

}  // namespace godwit::node
