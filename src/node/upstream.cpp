#include "node/upstream.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <charconv>

namespace godwit::node {
namespace {

constexpr std::size_t kept_limit = 256 * KiB;

/// What a frame counts for in frame::accepted.
std::uint64_t units(const pod::Frame& frame) {
  if (frame.kind != pod::FrameKind::input) return 0;
  return std::max<std::uint64_t>(1, frame.bytes.size());
}

}  // namespace

Upstream::Upstream(Stream& client, bool input) : client_(client), input_(input), reader_([this] { read(); }) {
  try {
    sender_ = std::thread([this] { send(); });
  } catch (const std::system_error&) {
    // A thread that is not joined would end the daemon.
    ::shutdown(client_.fd(), SHUT_RD);
    reader_.join();
    throw;
  }
}

Upstream::~Upstream() {
  use(nullptr);
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  ::shutdown(client_.fd(), SHUT_RD);
  reader_.join();
  sender_.join();
}

void Upstream::use(Stream* stream) {
  std::unique_lock lock(mutex_);
  // A write that hangs ends with the connection.
  if (stream_ != nullptr) ::shutdown(stream_->fd(), SHUT_RDWR);
  stream_ = nullptr;
  changed_.wait(lock, [this] { return !sending_; });
  stream_ = stream;
  streams_++;
  next_ = first_;
  acknowledged_before_ += std::exchange(acknowledged_, 0);
  // The client went while there was no stream to tell.
  if (gone_ && stream_ != nullptr) ::shutdown(stream_->fd(), SHUT_RDWR);
  changed_.notify_all();
}

void Upstream::delivered(std::uint64_t place) {
  const std::lock_guard lock(mutex_);
  delivered_ = std::max(delivered_, place);
  changed_.notify_all();
}

bool Upstream::client_gone() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

void Upstream::accepted(const std::string& count) {
  std::uint64_t all = 0;
  if (std::from_chars(count.data(), count.data() + count.size(), all).ec != std::errc{}) return;
  const std::lock_guard lock(mutex_);
  if (all <= acknowledged_) return;
  drop(all - acknowledged_);
  acknowledged_ = all;
  changed_.notify_all();
}

std::uint64_t Upstream::accepted_in_all() const {
  const std::lock_guard lock(mutex_);
  return acknowledged_before_ + acknowledged_;
}

void Upstream::drop(std::uint64_t count) {
  while (!kept_.empty()) {
    pod::Frame& front = kept_.front();
    const std::uint64_t size = units(front);
    if (size > count) {
      // The rest of it is still to come, here or on the next node.
      front.bytes.erase(front.bytes.begin(), front.bytes.begin() + static_cast<std::ptrdiff_t>(count));
      kept_bytes_ -= count;
      return;
    }
    if (count == 0 && first_ >= next_) return;
    count -= size;
    kept_bytes_ -= front.bytes.size();
    kept_.pop_front();
    first_++;
    next_ = std::max(next_, first_);
  }
}

void Upstream::read() {
  FrameReader frames(client_);
  for (;;) {
    auto frame = frames.next();
    std::unique_lock lock(mutex_);
    if (!frame) {
      gone_ = true;
      if (stream_ != nullptr) ::shutdown(stream_->fd(), SHUT_RDWR);
      return;
    }
    if (const auto place = pod::decode_delivered(*frame)) {
      delivered_ = std::max(delivered_, *place);
      changed_.notify_all();
    }
    if (!input_ || (frame->kind != pod::FrameKind::input && frame->kind != pod::FrameKind::window)) continue;
    changed_.wait(lock, [this] { return kept_bytes_ < kept_limit || over_; });
    if (over_) return;
    kept_bytes_ += frame->bytes.size();
    kept_.push_back(std::move(*frame));
    changed_.notify_all();
  }
}

void Upstream::send() {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto has_news = [this] { return delivered_ > delivered_said_ || next_ < first_ + kept_.size(); };
    changed_.wait(lock, [&] { return over_ || (stream_ != nullptr && has_news()); });
    if (over_) return;
    const bool delivery = delivered_ > delivered_said_;
    if (delivery) delivered_said_ = delivered_;
    const pod::Frame frame = delivery ? pod::Frame{pod::FrameKind::delivered, pod::encode_delivered(delivered_said_)}
                                      : kept_[next_ - first_];
    const std::uint64_t number = next_;
    const std::uint64_t stream_number = streams_;
    Stream* const stream = stream_;
    sending_ = true;
    lock.unlock();
    const bool sent = write_frame(*stream, frame.kind, frame.bytes).has_value();
    lock.lock();
    sending_ = false;
    if (sent && !delivery && stream_number == streams_) next_ = std::max(next_, number + 1);
    changed_.notify_all();
    // A broken stream shows at its reading end too; there it is replaced.
    if (!sent) changed_.wait(lock, [&] { return over_ || streams_ != stream_number || stream_ != stream; });
  }
}

}  // namespace godwit::node
