#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "base/stream.hpp"
#include "migrate/page_set.hpp"

/// Pages on the wire. A stream is a sequence of records: a header, then for `data` the bytes. An address is always
/// served by the same connection (by 2 MiB blocks), so that a newer copy of a page never overtakes an older one.
namespace godwit::migrate {

/// Which memory a page belongs to: a process (its pod pid) or a shared object (its index, with the top bit set).
using SpaceId = std::uint32_t;
inline constexpr SpaceId object_space = 1U << 31;

struct PageHeader {
  enum Kind : std::uint32_t {
    data = 0,    ///< `size` bytes follow
    zero = 1,    ///< `size` bytes of zeros, none follow
    end = 2,     ///< the round `address` is complete on this connection
    close = 3,   ///< nothing more will come
    drained = 4  ///< to the source: nothing is owed any more; and back: it has heard
  };
  SpaceId space = 0;
  std::uint32_t kind = data;
  std::uint64_t address = 0;
  std::uint64_t size = 0;
};

/// The largest piece that travels in one record: it stays in the second-level cache between recv and the copy into
/// place.
inline constexpr std::size_t max_piece = 256 * 1024;

/// Pages to be sent.
struct Piece {
  SpaceId space = 0;
  Range range;
};

/// Reads ranges of one space's memory at the source, one behind the other. Returns how many bytes of the beginning
/// could be read: when none, the first page is gone by now and is left out.
using ReadPages = std::function<std::size_t(SpaceId, std::span<const Range>, std::uint8_t* to)>;
/// As many ranges as are read at once.
inline constexpr std::size_t most_ranges = 64;
/// Puts memory in place at the destination. `data` is null for zeros.
using WritePages = std::function<Result<void>(SpaceId, std::uint64_t address, const void* data, std::size_t size)>;

/// How much went over the wire.
struct Sent {
  std::uint64_t pages = 0, zero_pages = 0, bytes = 0;
  Sent& operator+=(const Sent& other) {
    pages += other.pages;
    zero_pages += other.zero_pages;
    bytes += other.bytes;
    return *this;
  }
};

/// The sending side: all page connections of a migration.
class PageSender {
 public:
  PageSender(std::vector<Stream> connections, ReadPages read);
  /// Sends all pieces. Blocks until the last byte is in the socket.
  Result<Sent> send(std::span<const Piece> pieces);
  /// Says on every connection that the round is complete.
  Result<void> end_round(std::uint64_t round);
  Result<void> close();
  /// From here on a connection breaks when the peer has been out of reach for so long.
  void be_patient(std::chrono::seconds bound);
  /// The same records, into memory: for few pages that travel with a control message.
  static Sent encode(std::span<const Piece> pieces, const ReadPages& read, Bytes& out);

 private:
  std::vector<Stream> connections_;
  ReadPages read_;
};

/// The receiving side: a thread for each connection.
class PageReceiver {
 public:
  PageReceiver(std::vector<Stream> connections, WritePages write);
  ~PageReceiver();
  PageReceiver(const PageReceiver&) = delete;
  PageReceiver& operator=(const PageReceiver&) = delete;
  /// Waits until every connection has ended the round; the first error of any of them otherwise. `unreachable` when
  /// nothing has come for a minute, or when the source has `left` (asked now and then).
  Result<void> wait(std::uint64_t round, const std::function<bool()>& left = {});
  /// The threads that receive.
  [[nodiscard]] std::vector<HostPid> threads() const;
  /// Puts records in place that came by other ways (PageSender::encode).
  static Result<void> decode(BytesView records, const WritePages& write);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::migrate
