#pragma once

#include <functional>
#include <string>

#include "node/pods.hpp"
#include "pod/log_segments.hpp"

/// A pod's output and input as frames (pod/log_segments.hpp) on a stream socket.
namespace godwit::node {

/// Frames that only daemons send, beside those of the log.
namespace frame {
inline constexpr auto position =
    static_cast<pod::FrameKind>(64);                          ///< "SEGMENT OFFSET": what came before is up to there
inline constexpr auto end = static_cast<pod::FrameKind>(65);  ///< no more output for now, and none was waited for
/// How much input the program has been given on this stream so far, as a number: bytes, and one for an end of input.
/// What isn't accepted when the pod leaves goes to its next node.
inline constexpr auto accepted = static_cast<pod::FrameKind>(67);
inline constexpr auto failure = static_cast<pod::FrameKind>(66);  ///< an error as JSON; last
}  // namespace frame

struct StreamOptions {
  pod::LogPosition position;  ///< where to begin
  bool tail = false;          ///< at the log's end instead
  bool follow = true;         ///< to the pod's end, and not only what is there
  bool input = false;         ///< input and window frames of the other side go to the program
};

/// Serves `fd` until the pod has ended (an exit frame is last), has left this node or what is here has been sent (an
/// end frame; the stream just ends when it left), or the other side goes.
void serve_stream(int fd, LocalPod&, const StreamOptions&);

/// Starts a program beside the pod's first, with its streams (or a terminal) on `fd`; an exit frame is last.
/// `started` is called before the first frame, once the program runs; errors before that are returned.
Result<void> serve_exec(int fd, LocalPod&, const pod::Program&, const std::function<Result<void>()>& started);

/// Reads frames off a socket one by one.
class FrameReader {
 public:
  explicit FrameReader(int fd) : fd_(fd) {}
  /// Something of a further frame has been read already.
  [[nodiscard]] bool pending() const { return !buffer_.empty(); }
  /// The next frame; `gone` at the end of the stream.
  Result<pod::Frame> next();

 private:
  int fd_;
  Bytes buffer_;
};

Result<void> write_frame(int fd, pod::FrameKind, BytesView bytes);
Result<void> write_frame(int fd, pod::FrameKind, const std::string& text);

std::string encode_position(const pod::LogPosition&);
Result<pod::LogPosition> decode_position(const std::string& text);

/// Wait status in an exit frame.
Bytes encode_status(int status);
Result<int> decode_status(const pod::Frame&);

}  // namespace godwit::node
