#include "pod/frames.hpp"

namespace godwit::pod {

namespace {

Bytes encode(std::uint64_t value, std::size_t size) {
  Bytes bytes;
  for (std::size_t i = 0; i < size; ++i) bytes.push_back(value >> 8 * i & 0xff);
  return bytes;
}

std::uint64_t decode(const Bytes& bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) value |= std::uint64_t{bytes[i]} << 8 * i;
  return value;
}

}  // namespace

std::size_t frame_length(const std::uint8_t* header) {
  return header[1] | header[2] << 8 | header[3] << 16 | std::size_t{header[4]} << 24;
}

void append_frame(Bytes& out, FrameKind kind, BytesView bytes) {
  const auto length = static_cast<std::uint32_t>(bytes.size());
  out.push_back(static_cast<std::uint8_t>(kind));
  for (int shift = 0; shift < 32; shift += 8) out.push_back(length >> shift & 0xff);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

Result<bool> take_frame(Bytes& in, Frame& frame) {
  if (in.size() < frame_header) return false;
  const std::size_t length = frame_length(in.data());
  if (length > frame_limit) return fail(ErrorKind::invalid, "frame of {} bytes is over the limit", length);
  if (in.size() < frame_header + length) return false;
  const auto begin = in.begin() + frame_header;
  const auto end = begin + static_cast<std::ptrdiff_t>(length);
  frame.kind = static_cast<FrameKind>(in[0]);
  frame.bytes.assign(begin, end);
  in.erase(in.begin(), end);
  return true;
}

Bytes encode_status(int status) {
  return encode(static_cast<std::uint32_t>(status), 4);
}

Result<int> decode_status(const Frame& frame) {
  if (frame.kind != FrameKind::exit || frame.bytes.size() != 4) return fail(ErrorKind::invalid, "malformed exit frame");
  return static_cast<int>(decode(frame.bytes));
}

Bytes encode_delivered(std::uint64_t place) {
  return encode(place, 8);
}

std::optional<std::uint64_t> decode_delivered(const Frame& frame) {
  if (frame.kind != FrameKind::delivered || frame.bytes.size() != 8) return std::nullopt;
  return decode(frame.bytes);
}

}  // namespace godwit::pod
