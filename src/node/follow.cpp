#include "node/follow.hpp"

#include <thread>

#include "node/upstream.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds patience_time{30};
constexpr std::chrono::milliseconds between_attempts{50};

pod::Frame frame_of(pod::FrameKind kind, const std::string& text) {
  return {kind, Bytes(text.begin(), text.end())};
}

std::string text_of(const pod::Frame& frame) {
  return {frame.bytes.begin(), frame.bytes.end()};
}

}  // namespace

void follow(Stream& client, StreamOptions options, std::unique_ptr<FrameSource> source, const OpenSource& open,
            const std::function<bool(const pod::Frame&)>& sink) {
  Upstream upstream(client, options.input);
  Deadline patience = in(patience_time);
  for (;;) {
    upstream.use(&source->stream());
    FrameReader frames(source->stream());
    for (;;) {
      auto frame = frames.next();
      if (!frame) break;
      patience = in(patience_time);
      if (frame->kind == frame::position) {
        if (auto position = decode_position(text_of(*frame))) {
          options.position = *position;
          options.tail = false;
        }
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
