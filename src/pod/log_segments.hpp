#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"
#include "pod/frames.hpp"

/// A pod's output on disk: a directory of segments, each a sequence of frames. A segment is named after the pod's own
/// CLOCK_MONOTONIC when it began (nanoseconds, 20 digits): that clock goes along and never runs backwards, so segments
/// sort in the order in which they were written, wherever that was.
namespace godwit::pod {

/// A place in a log: what stands before it has been read. Empty: the beginning.
struct LogPosition {
  std::string segment;
  std::uint64_t offset = 0;
  MSGPACK_DEFINE_MAP(segment, offset)
};

[[nodiscard]] bool is_log_segment(std::string_view name);
/// Names of the segments, oldest first. None when the directory isn't there.
Result<std::vector<std::string>> log_segments(const std::string& directory);
/// The frames after `position`, at most about `limit` bytes, and moves it. Empty: nothing more for now.
Result<std::vector<Frame>> read_log(const std::string& directory, LogPosition& position, std::size_t limit = MiB);

/// Appends frames to the newest segment. Never fails: what can't be written is counted, and said in the log as soon as
/// that works again.
class LogWriter {
 public:
  explicit LogWriter(Fd directory) : directory_(std::move(directory)) {}
  void append(FrameKind, BytesView bytes);
  /// The next byte begins a new segment.
  void end_segment() { file_.reset(); }
  [[nodiscard]] int directory() const { return directory_.get(); }
  [[nodiscard]] std::uint64_t lost() const { return lost_; }
  [[nodiscard]] LogPosition position() const { return {segment_, size_}; }

 private:
  bool open_segment();
  bool write_frame(FrameKind, BytesView bytes);

  Fd directory_;
  Fd file_;
  std::string segment_;
  std::uint64_t size_ = 0;
  std::uint64_t lost_ = 0;      ///< in all
  std::uint64_t not_said_ = 0;  ///< of these, not yet in the log
};

}  // namespace godwit::pod
