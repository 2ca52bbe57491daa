#pragma once

#include <atomic>
#include <deque>
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
  struct Target {
    std::string execution;  ///< empty: the pod's first program
    int init = -1;          ///< the execution's socket: gets what is delivered, and is shut down when the client goes
  };
  /// `writing`: held by whoever writes frames to the client. `not_found` when the pod has ended, `gone` when it left.
  static Result<std::unique_ptr<Input>> open(Stream& client, LocalPod&, std::mutex& writing, const Target&);
  /// Returns when nothing is read from the client any more.
  ~Input();

 private:
  Input(Stream& client, LocalPod& pod, std::mutex& writing, const Target&, Fd stream, bool terminal);
  [[nodiscard]] static std::string prefix(const Target&);
  void run();
  void forward();
  void pass_on(const pod::Frame&) const;
  void take(pod::Frame);
  bool put();
  bool end();
  void set_window(const Bytes&) const;
  bool acknowledge(std::size_t more);

  Stream& client_;
  LocalPod& pod_;
  std::mutex& writing_;
  const Target target_;
  Fd stream_;  ///< the init's end of stdin, or the terminal's master; none: the input has ended
  const bool terminal_;
  Fd wake_;
  std::atomic<bool> stop_ = false;
  std::deque<Bytes> waiting_;  ///< for the program to take it; empty ones: the end of the input
  std::size_t waiting_bytes_ = 0;
  std::uint64_t accepted_ = 0;
  std::thread thread_;
};

}  // namespace godwit::node
