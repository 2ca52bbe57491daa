#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.hpp"
#include "base/result.hpp"

/// A program's streams as frames: in the log, between the daemon and a pod's init, between daemons and clients.
namespace godwit::pod {

/// What a frame carries.
enum class FrameKind : std::uint8_t {
  input = 0,     ///< client to pod: bytes for stdin; empty: the input has ended
  output = 1,    ///< stdout
  error = 2,     ///< stderr
  terminal = 3,  ///< output of the terminal
  lost = 4,      ///< u64 little-endian: bytes of output that the log couldn't take at this place
  window = 5,    ///< client to pod: rows, columns as u16 little-endian
  exit = 6,      ///< pod to client, last: wait status as u32 little-endian
  delivered = 7  ///< client to pod: u64 little-endian: bytes of frames of an execution's output that are there
};

/// u8 kind, u32 length (little-endian), then the bytes.
inline constexpr std::size_t frame_header = 5;
inline constexpr std::size_t frame_limit = 64 * KiB;

struct Frame {
  FrameKind kind = FrameKind::output;
  Bytes bytes;
};

/// Of the bytes behind a header.
[[nodiscard]] std::size_t frame_length(const std::uint8_t* header);
/// Appends one frame to `out`.
void append_frame(Bytes& out, FrameKind, BytesView bytes);
/// Takes the first whole frame off the front of `in`; false when there is none yet. `invalid` when it is too long.
Result<bool> take_frame(Bytes& in, Frame& frame);

/// Of an exit frame: a wait status.
[[nodiscard]] Bytes encode_status(int status);
/// `invalid` when it is none.
Result<int> decode_status(const Frame&);

[[nodiscard]] Bytes encode_delivered(std::uint64_t place);
/// nullopt when it is another frame, or malformed.
[[nodiscard]] std::optional<std::uint64_t> decode_delivered(const Frame&);

}  // namespace godwit::pod
