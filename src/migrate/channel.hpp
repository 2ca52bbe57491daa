#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stream.hpp"
#include "image/codec.hpp"

namespace godwit::migrate {

/// How long a peer may be out of reach before a connection to it breaks: long enough for a link that comes back by
/// itself, and while the pod stands still no longer than its users would take for a hiccup.
inline constexpr std::chrono::seconds patience{7}, freeze_patience{2};

/// One message of the control connection, as it came in.
struct Message {
  std::uint8_t type = 0;
  Bytes payload;
};

/// Framed messages over an authenticated connection: u32 payload length (little endian), u8 type, payload. A
/// broken or silent peer is `unreachable`; a frame over the limit is `invalid`.
class Channel {
 public:
  static constexpr std::size_t max_payload = 256 * MiB;

  explicit Channel(Stream stream);

  Result<void> send(std::uint8_t type, BytesView payload);
  template <typename Type, typename T>
  Result<void> send(Type type, const T& message) {
    return send(static_cast<std::uint8_t>(type), BytesView(image::pack(message)));
  }
  /// Waits for the next message.
  Result<Message> receive(std::chrono::milliseconds limit = std::chrono::seconds(30));
  /// True when something can be read without waiting (also the end of the connection); waits so long for it.
  [[nodiscard]] bool readable(std::chrono::milliseconds patience = {});
  /// The peer sends nothing more, whatever of it is still to be read.
  [[nodiscard]] bool hung_up() const;
  /// From here on the connection breaks when the peer has been out of reach for so long.
  void be_patient(std::chrono::seconds bound);
  /// Both sides find the end of the connection, whatever waits for it. Any thread.
  void hang_up();
  [[nodiscard]] std::uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  Stream stream_;
  std::uint64_t bytes_sent_ = 0;
};

/// Makes a connection whose peer has vanished break within `bound` (at least two seconds), whether something is under
/// way or not: what isn't acknowledged for so long, a probe that isn't answered, and a peer that takes nothing more.
/// Its kernel answers the probes: how long it may think is the receiver's limit.
void notice_silence(int socket, std::chrono::seconds bound = patience);

/// Reads or writes all of `size` bytes; the end of the stream is `unreachable`.
Result<void> send_all(Stream&, const void* data, std::size_t size);
Result<void> send_all(Stream&, std::span<const iovec> parts);
Result<void> receive_all(Stream&, void* data, std::size_t size, std::chrono::milliseconds limit);
/// However it comes: all of it by then.
Result<void> receive_all(Stream&, void* data, std::size_t size, Deadline);
/// What is there, at least one byte.
Result<std::size_t> receive_some(Stream&, void* data, std::size_t size, std::chrono::milliseconds limit);

}  // namespace godwit::migrate
