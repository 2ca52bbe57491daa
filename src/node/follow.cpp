#include "node/follow.hpp"

#include <algorithm>
#include <thread>
#include <vector>

#include "node/upstream.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds patience_time{30};
constexpr std::chrono::milliseconds between_attempts{50};
constexpr std::size_t unplaced_limit = MiB;

pod::Frame frame_of(pod::FrameKind kind, const std::string& text) {
  return {kind, Bytes(text.begin(), text.end())};
}

std::string text_of(const pod::Frame& frame) {
  return {frame.bytes.begin(), frame.bytes.end()};
}

bool is_output(const pod::Frame& frame) {
  switch (frame.kind) {
    case pod::FrameKind::output:
    case pod::FrameKind::error:
    case pod::FrameKind::terminal:
    case pod::FrameKind::lost:
      return true;
    default:
      return false;
  }
}

/// Output that has come without the place that it ends at. What breaks off before that is sent again by the next
/// stream: passed on before, it would be there twice.
class Unplaced {
 public:
  void add(pod::Frame frame) {
    size_ += frame.bytes.size() + pod::frame_header;
    frames_.push_back(std::move(frame));
  }
  /// More than any server sends before it says where that ends.
  [[nodiscard]] bool too_much() const { return size_ > unplaced_limit; }
  void drop() {
    frames_.clear();
    size_ = 0;
  }
  /// False when the sink wants no more.
  bool pass(const std::function<bool(const pod::Frame&)>& sink) {
    const bool all = std::ranges::all_of(frames_, sink);
    drop();
    return all;
  }

 private:
  std::vector<pod::Frame> frames_;
  std::size_t size_ = 0;
};

}  // namespace

void follow(Stream& client, StreamOptions options, std::unique_ptr<FrameSource> source, const OpenSource& open,
            const std::function<bool(const pod::Frame&)>& sink) {
  Upstream upstream(client, options.input);
  Deadline patience = in(patience_time);
  for (;;) {
    upstream.use(&source->stream());
    FrameReader frames(source->stream());
    Unplaced output;
    for (;;) {
      auto frame = frames.next();
      if (!frame) break;
      patience = in(patience_time);
      if (is_output(*frame)) {
        output.add(std::move(*frame));
        if (output.too_much() && !output.pass(sink)) return;
        continue;
      }
      if (frame->kind == frame::position) {
        if (auto position = decode_position(text_of(*frame))) {
          options.position = *position;
          options.tail = false;
        }
        if (!output.pass(sink)) return;
        // Whoever doesn't want to know has it as soon as it is written to them.
        if (!options.places && !options.execution.empty()) upstream.delivered(options.position.offset);
        if (!options.places) continue;
      }
      if (frame->kind == frame::accepted) {
        upstream.accepted(text_of(*frame));
        if (!options.places) continue;
        *frame = frame_of(frame::accepted, std::to_string(upstream.accepted_in_all()));
      }
      if (!sink(*frame)) return;
      if (frame->kind == pod::FrameKind::exit || frame->kind == frame::end || frame->kind == frame::failure) return;
    }
    upstream.use(nullptr);
    // The stream ended in the middle: the pod has moved, or who has served it is away.
    for (;;) {
      if (upstream.client_gone()) return;
      auto next = open(options);
      if (next) {
        source = std::move(*next);
        break;
      }
      if (next.error().kind == ErrorKind::not_found || std::chrono::steady_clock::now() > patience) {
        sink(frame_of(frame::failure, next.error().message()));
        return;
      }
      std::this_thread::sleep_for(between_attempts);
    }
  }
}

}  // namespace godwit::node
