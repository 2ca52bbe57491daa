#include "migrate/page_stream.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/caught.hpp"
#include "migrate/channel.hpp"

namespace godwit::migrate {

namespace {

constexpr std::uint64_t block = 2 * MiB;
/// Of a source that has pages to send.
constexpr std::chrono::seconds longest_silence{60};

bool is_zero(const std::uint8_t* page) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(page);
  // Most pages that aren't zero say so in their first words.
  std::uint64_t bits = words[0] | words[page_size / 8 - 1] | words[page_size / 16];
  if (bits != 0) return false;
  for (std::size_t i = 0; i < page_size / 8; ++i) bits |= words[i];
  return bits == 0;
}

struct Run {
  bool zero;
  std::uint64_t address;
  const std::uint8_t* data;
  std::size_t size;
};

/// Adds what was read, as stretches of zeros and of content.
void split(std::uint64_t address, const std::uint8_t* data, std::size_t size, std::vector<Run>& runs) {
  const std::size_t before = runs.size();
  for (std::size_t at = 0; at < size; at += page_size) {
    const bool zero = is_zero(data + at);
    if (runs.size() > before && runs.back().zero == zero)
      runs.back().size += page_size;
    else
      runs.push_back({zero, address + at, data + at, page_size});
  }
}

/// Calls `emit(space, runs)` for all that can be read of the pieces. Many small ones are read and told in one call, at
/// most max_piece at a time.
template <typename Emit>
Result<void> read_pieces(std::span<const Piece> pieces, const ReadPages& read, std::uint8_t* buffer, Emit&& emit) {
  std::vector<Range> group;
  std::vector<Run> runs;
  std::size_t first = 0;
  std::uint64_t done = 0;  // of the first piece
  while (first < pieces.size()) {
    const SpaceId space = pieces[first].space;
    group.clear();
    std::uint64_t size = 0, skip = done;
    for (std::size_t i = first;
         i < pieces.size() && pieces[i].space == space && group.size() < most_ranges && size < max_piece;
         ++i, skip = 0) {
      const std::uint64_t begin = pieces[i].range.begin + skip;
      group.push_back({begin, std::min(pieces[i].range.end, begin + (max_piece - size))});
      size += group.back().size();
    }
    const std::uint64_t got = read(space, group, buffer) & ~(page_size - 1);
    std::uint64_t left = got;
    const std::uint8_t* data = buffer;
    runs.clear();
    for (const auto& range : group) {
      const std::uint64_t take = std::min(left, range.size());
      split(range.begin, data, take, runs);
      data += take;
      left -= take;
    }
    if (!runs.empty()) TRY(emit(space, runs));
    for (std::uint64_t passed = got > 0 ? got : page_size; first < pieces.size();) {
      const std::uint64_t rest = pieces[first].range.size() - done;
      if (passed < rest) {
        done += passed;
        break;
      }
      passed -= rest;
      done = 0;
      ++first;
      if (passed == 0) break;
    }
  }
  return {};
}

Sent count(const std::vector<Run>& runs) {
  Sent sent;
  for (const auto& run : runs) {
    (run.zero ? sent.zero_pages : sent.pages) += run.size / page_size;
    sent.bytes += sizeof(PageHeader) + (run.zero ? 0 : run.size);
  }
  return sent;
}

Result<void> write_runs(Stream& stream, SpaceId space, const std::vector<Run>& runs) {
  std::vector<PageHeader> headers;
  headers.reserve(runs.size());
  std::vector<iovec> parts;
  parts.reserve(runs.size() * 2);
  for (const auto& run : runs) {
    headers.push_back({space, run.zero ? PageHeader::zero : PageHeader::data, run.address, run.size});
    parts.push_back({&headers.back(), sizeof(PageHeader)});
    if (!run.zero) parts.push_back({const_cast<std::uint8_t*>(run.data), run.size});
  }
  return send_all(stream, parts);
}

/// Pieces cut at block borders, so that each block goes to its own connection.
std::vector<std::vector<Piece>> deal(std::span<const Piece> pieces, std::size_t connections) {
  std::vector<std::vector<Piece>> hands(connections);
  for (const auto& piece : pieces) {
    for (std::uint64_t at = piece.range.begin; at < piece.range.end;) {
      const std::uint64_t until = std::min(piece.range.end, (at / block + 1) * block);
      hands[at / block % connections].push_back({piece.space, {at, until}});
      at = until;
    }
  }
  return hands;
}

}  // namespace

PageSender::PageSender(std::vector<Stream> connections, ReadPages read)
    : connections_(std::move(connections)), read_(std::move(read)) {
  for (const auto& connection : connections_) notice_silence(connection.fd());
}

void PageSender::be_patient(std::chrono::seconds bound) {
  for (const auto& connection : connections_) notice_silence(connection.fd(), bound);
}

Result<Sent> PageSender::send(std::span<const Piece> pieces) {
  const auto hands = deal(pieces, connections_.size());
  std::vector<Result<Sent>> outcomes(connections_.size(), Sent{});
  const auto work = [&](std::size_t which) -> Result<Sent> {
    Sent sent;
    const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(max_piece);
    Stream& stream = connections_[which];
    TRY(read_pieces(hands[which], read_, buffer.get(),
                    [&](SpaceId space, const std::vector<Run>& runs) -> Result<void> {
                      sent += count(runs);
                      return write_runs(stream, space, runs);
                    }));
    return sent;
  };
  {
    const auto work_on = [&](std::size_t i) { outcomes[i] = caught([&] { return work(i); }); };
    std::vector<std::jthread> threads;
    std::size_t begun = 1;
    try {
      for (; begun < connections_.size(); ++begun)
        if (!hands[begun].empty()) threads.emplace_back(work_on, begun);
    } catch (const std::system_error&) {
      // Where no thread can be had they are served one behind the other.
    }
    work_on(0);
    for (; begun < connections_.size(); ++begun) work_on(begun);
  }
  Sent all;
  for (auto& outcome : outcomes) all += TRY(outcome);
  return all;
}

Result<void> PageSender::end_round(std::uint64_t round) {
  const PageHeader end{0, PageHeader::end, round, 0};
  for (auto& connection : connections_) TRY(send_all(connection, &end, sizeof end));
  return {};
}

Result<void> PageSender::close() {
  const PageHeader header{0, PageHeader::close, 0, 0};
  for (auto& connection : connections_) TRY(send_all(connection, &header, sizeof header));
  connections_.clear();
  return {};
}

Sent PageSender::encode(std::span<const Piece> pieces, const ReadPages& read, Bytes& out) {
  Sent sent;
  const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(max_piece);
  (void)read_pieces(pieces, read, buffer.get(), [&](SpaceId space, const std::vector<Run>& runs) -> Result<void> {
    sent += count(runs);
    for (const auto& run : runs) {
      const PageHeader header{space, run.zero ? PageHeader::zero : PageHeader::data, run.address, run.size};
      const auto* raw = reinterpret_cast<const std::uint8_t*>(&header);
      out.insert(out.end(), raw, raw + sizeof header);
      if (!run.zero) out.insert(out.end(), run.data, run.data + run.size);
    }
    return {};
  });
  return sent;
}

namespace {

/// A connection's bytes. Small records come many at a time; of a large one only the beginning is copied twice.
class Inflow {
 public:
  explicit Inflow(Stream& stream) : stream_(stream) {}
  Result<void> take(void* to, std::size_t size) {
    // A connection is silent while the source does something else; a dead one is found by the control connection.
    constexpr auto limit = std::chrono::hours(24);
    auto* at = static_cast<std::uint8_t*>(to);
    while (size > 0) {
      const std::size_t ready = std::min(size, end_ - begin_);
      std::memcpy(at, ahead_.data() + begin_, ready);
      begin_ += ready;
      at += ready;
      size -= ready;
      if (size == 0) return {};
      if (size >= ahead_.size()) return receive_all(stream_, at, size, limit);
      end_ = TRY(receive_some(stream_, ahead_.data(), ahead_.size(), limit));
      begin_ = 0;
    }
    return {};
  }

 private:
  Stream& stream_;
  std::array<std::uint8_t, 32 * KiB> ahead_;
  std::size_t begin_ = 0, end_ = 0;
};

}  // namespace

struct PageReceiver::Parts {
  std::vector<Stream> connections;
  WritePages write;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::uint64_t> ended;        ///< per connection: last round that ended, UINT64_MAX when closed
  std::atomic<std::uint64_t> records = 0;  ///< that have come
  Result<void> outcome;
  bool stopping = false;
  std::vector<HostPid> numbers;  ///< of the threads that have begun, and haven't ended
  std::vector<std::jthread> threads;

  void stop() {
    {
      const std::scoped_lock lock(mutex);
      stopping = true;
    }
    for (const auto& connection : connections) ::shutdown(connection.fd(), SHUT_RDWR);
  }

  Result<void> serve(std::size_t which) {
    {
      const std::scoped_lock lock(mutex);
      numbers.push_back(HostPid{::gettid()});
    }
    const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(max_piece);
    const auto inflow = std::make_unique<Inflow>(connections[which]);
    for (;;) {
      PageHeader header;
      TRY(inflow->take(&header, sizeof header));
      records.fetch_add(1, std::memory_order_relaxed);
      switch (header.kind) {
        case PageHeader::data:
        case PageHeader::zero:
          if (header.size == 0 || header.size % page_size != 0 || header.address % page_size != 0 ||
              header.size > max_piece)
            return fail(ErrorKind::invalid, "malformed page record");
          if (header.kind == PageHeader::data) TRY(inflow->take(buffer.get(), header.size));
          TRY(write(header.space, header.address, header.kind == PageHeader::data ? buffer.get() : nullptr,
                    header.size));
          break;
        case PageHeader::end:
        case PageHeader::close: {
          const std::scoped_lock lock(mutex);
          ended[which] = header.kind == PageHeader::end ? header.address : UINT64_MAX;
          changed.notify_all();
          if (header.kind == PageHeader::close) return {};
          break;
        }
        default:
          return fail(ErrorKind::invalid, "unknown page record {}", header.kind);
      }
    }
  }
};

PageReceiver::PageReceiver(std::vector<Stream> connections, WritePages write) : parts_(std::make_unique<Parts>()) {
  parts_->connections = std::move(connections);
  for (const auto& connection : parts_->connections) notice_silence(connection.fd());
  parts_->write = std::move(write);
  parts_->ended.assign(parts_->connections.size(), 0);
  try {
    for (std::size_t i = 0; i < parts_->connections.size(); ++i) {
      parts_->threads.emplace_back([parts = parts_.get(), i] {
        auto outcome = caught([&] { return parts->serve(i); });
        const std::scoped_lock lock(parts->mutex);
        std::erase(parts->numbers, HostPid{::gettid()});
        if (!outcome && parts->outcome && !parts->stopping) parts->outcome = std::move(outcome);
        parts->changed.notify_all();
      });
    }
  } catch (const std::system_error&) {
    parts_->stop();
    throw;
  }
}

PageReceiver::~PageReceiver() {
  parts_->stop();
}

std::vector<HostPid> PageReceiver::threads() const {
  const std::scoped_lock lock(parts_->mutex);
  return parts_->numbers;
}

Result<void> PageReceiver::wait(std::uint64_t round, const std::function<bool()>& left) {
  constexpr std::chrono::milliseconds between{250};
  std::unique_lock lock(parts_->mutex);
  std::uint64_t before = parts_->records;
  auto silent_since = std::chrono::steady_clock::now();
  for (;;) {
    const bool over = parts_->changed.wait_for(lock, between, [&] {
      return !parts_->outcome ||
             std::ranges::all_of(parts_->ended, [&](std::uint64_t ended) { return ended >= round; });
    });
    if (over) return parts_->outcome;
    const auto now = std::chrono::steady_clock::now();
    if (const std::uint64_t records = parts_->records; records != before) {
      before = records;
      silent_since = now;
    }
    // Its page connections may not say so: they end apart from this, and only who reads them sees it.
    if (left && left()) return fail(ErrorKind::unreachable, "the source has gone while its pages were waited for");
    if (now - silent_since > longest_silence)
      return fail(ErrorKind::unreachable, "no pages have come for {} s", longest_silence.count());
  }
}

Result<void> PageReceiver::decode(BytesView records, const WritePages& write) {
  std::size_t at = 0;
  while (at < records.size()) {
    PageHeader header;
    if (records.size() - at < sizeof header) return fail(ErrorKind::invalid, "truncated page record");
    std::memcpy(&header, records.data() + at, sizeof header);
    at += sizeof header;
    if (header.kind > PageHeader::zero || header.size % page_size != 0 || header.address % page_size != 0 ||
        header.size > max_piece)
      return fail(ErrorKind::invalid, "malformed page record");
    const std::uint8_t* data = nullptr;
    if (header.kind == PageHeader::data) {
      if (records.size() - at < header.size) return fail(ErrorKind::invalid, "truncated page record");
      data = records.data() + at;
      at += header.size;
    }
    TRY(write(header.space, header.address, data, header.size));
  }
  return {};
}

}  // namespace godwit::migrate
