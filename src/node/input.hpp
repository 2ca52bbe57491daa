#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "base/fd.hpp"
#include "node/pods.hpp"
#include "node/stream.hpp"

namespace godwit::node {

/// A client's input on its way to a pod that is here, on a thread. What the program has been given is acknowledged to
/// the client (frame::accepted); what comes while a migration has the pod frozen waits, and is the next node's if it
/// leaves.
class Input {
 public:
  /// `writing`: held by whoever writes frames to the client. `not_found` when the pod has ended, `gone` when it left.
  static Result<std::unique_ptr<Input>> open(Stream& client, LocalPod&, std::mutex& writing);
  /// Returns when nothing is read from the client any more.
  ~Input();

 private:
  Input(Stream& client, LocalPod& pod, std::mutex& writing, Fd stream, bool terminal);
  void forward();
  bool put(BytesView bytes);
  bool end();
  void set_window(const Bytes&) const;
  bool acknowledge(std::size_t more);

  Stream& client_;
  LocalPod& pod_;
  std::mutex& writing_;
  Fd stream_;  ///< the init's end of stdin, or the terminal's master; none: the input has ended
  const bool terminal_;
  Fd wake_;
  std::atomic<bool> stop_ = false;
  std::uint64_t accepted_ = 0;
  std::thread thread_;
};

}  // namespace godwit::node
