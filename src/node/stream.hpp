#pragma once

#include <span>
#include <string>

#include "node/pods.hpp"
#include "pod/frames.hpp"
#include "pod/log_segments.hpp"

/// A pod's output and input as frames (pod/frames.hpp) on a connection.
namespace godwit::node {

/// Frames beside those of the log; the first two only for who follows (node/follow).
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
  bool places = false;        ///< who reads wants frame::position and frame::accepted
  std::string execution;      ///< of this one; empty: of the pod's first program
};

/// Serves `client` until the pod has ended (an exit frame is last), has left this node or what is here has been sent
/// (an end frame; the stream just ends when it left), or the other side goes.
void serve_stream(Stream& client, LocalPod&, const StreamOptions&);

/// Starts a program beside the pod's first; the execution's id.
Result<std::string> start_execution(LocalPod&, const pod::Program&);
/// Ends one, as far as its streams' end does that.
Result<void> close_execution(LocalPod&, const std::string& id);
/// Of serve_stream: the streams of `options.execution`. `not_found` when there is none, or the pod has ended.
Result<void> serve_execution(Stream& client, LocalPod&, const StreamOptions& options);

/// Reads frames off a connection one by one.
class FrameReader {
 public:
  explicit FrameReader(Stream& from) : from_(from) {}
  /// Something of a further frame has come in already, and poll may not know of it.
  [[nodiscard]] bool pending() { return !buffer_.empty() || from_.ready(); }
  /// The next frame; `gone` at the end of the stream.
  Result<pod::Frame> next();

 private:
  Stream& from_;
  Bytes buffer_;
};

Result<void> write_frame(Stream& client, pod::FrameKind, BytesView bytes);
Result<void> write_frame(Stream& client, pod::FrameKind, const std::string& text);
/// With the place that they end at.
Result<void> write_frames(Stream& client, std::span<const pod::Frame>, const pod::LogPosition& end);

std::string encode_position(const pod::LogPosition&);
Result<pod::LogPosition> decode_position(const std::string& text);

}  // namespace godwit::node
