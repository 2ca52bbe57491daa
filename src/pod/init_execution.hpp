#pragma once

#include "pod/execution.hpp"
#include "pod/init_streams.hpp"

namespace godwit::pod {

/// The init's side of a program beside the first: its streams, and what it has written until its reader has that.
class InitExecution {
 public:
  explicit InitExecution(Execution facts)
      : facts_(std::move(facts)),
        streams_([this](FrameKind kind, BytesView bytes) { append_frame(facts_.output, kind, bytes); }) {}

  [[nodiscard]] Streams& streams() { return streams_; }
  [[nodiscard]] const Streams& streams() const { return streams_; }
  [[nodiscard]] Execution facts() const;
  /// Without its output.
  [[nodiscard]] Execution summary() const;
  void started(pid_t process) { facts_.process = process; }
  [[nodiscard]] bool runs_as(pid_t process) const { return !facts_.ended && facts_.process == process; }
  void ended(int status);
  /// What its init on another node has said last.
  void restore(const Execution&);

  /// A reader, from a place in the output on; it takes over from the one before. Frames go to it, an exit frame last;
  /// FrameKind::delivered comes from it. `invalid` when that place isn't kept.
  Result<void> attach(std::uint64_t from, Fd client);
  void watch(std::vector<Watch>&);

 private:
  [[nodiscard]] std::uint64_t end() const { return facts_.begin + facts_.output.size(); }
  void send();
  void receive();
  void delivered(std::uint64_t up_to);

  Execution facts_;
  Streams streams_;
  Fd client_;
  Bytes received_;
  std::uint64_t sent_ = 0;     ///< place in the output that the client has been sent all before of
  std::size_t exit_sent_ = 0;  ///< bytes of the exit frame
};

}  // namespace godwit::pod
