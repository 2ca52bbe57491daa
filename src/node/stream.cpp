#include "node/stream.hpp"

#include <poll.h>
#include <sys/inotify.h>

#include <charconv>
#include <filesystem>
#include <mutex>

#include "node/input.hpp"

namespace godwit::node {
namespace {

constexpr std::size_t batch = 256 * KiB;
/// Only a net below inotify: a segment that arrives late, say.
constexpr int poll_ms = 500;
constexpr std::chrono::seconds linger_time{5};

bool valid_segment(std::string_view name) {
  return name.size() <= 64 && name.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz.-_") == name.npos;
}

/// The place after all that has been written so far.
pod::LogPosition log_end(const std::string& directory) {
  pod::LogPosition position;
  const auto segments = pod::log_segments(directory);
  if (!segments || segments->empty()) return position;
  position.segment = segments->back();
  std::error_code error;
  const auto size = std::filesystem::file_size(directory + "/" + position.segment, error);
  position.offset = error ? 0 : size;
  return position;
}

/// Ends our side and takes what still comes, so that closing doesn't break off what we have sent before.
void linger(Stream& client) {
  client.end();
  const Deadline deadline = in(linger_time);
  char buffer[16384];
  for (;;) {
    const auto got = read_some(client, buffer, sizeof buffer, deadline);
    if (!got || *got == 0) return;
  }
}

void fail_stream(Stream& client, const Error& error) {
  (void)write_frame(client, frame::failure, error.message());
}

}  // namespace

Result<pod::Frame> FrameReader::next() {
  for (;;) {
    pod::Frame frame;
    if (TRY(pod::take_frame(buffer_, frame))) return frame;
    std::uint8_t chunk[16384];
    const std::size_t got = TRY(read_some(from_, chunk, sizeof chunk, never()));
    if (got == 0) return fail(ErrorKind::gone, "the stream has ended");
    buffer_.insert(buffer_.end(), chunk, chunk + got);
  }
}

Result<void> write_frame(Stream& client, pod::FrameKind kind, BytesView bytes) {
  Bytes out;
  pod::append_frame(out, kind, bytes);
  return write_all(client, out.data(), out.size(), never());
}

Result<void> write_frame(Stream& client, pod::FrameKind kind, const std::string& text) {
  return write_frame(client, kind, BytesView(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()));
}

Result<void> write_frames(Stream& client, std::span<const pod::Frame> frames, const pod::LogPosition& end) {
  Bytes out;
  for (const pod::Frame& item : frames) pod::append_frame(out, item.kind, item.bytes);
  const std::string place = encode_position(end);
  pod::append_frame(out, frame::position, BytesView(reinterpret_cast<const std::uint8_t*>(place.data()), place.size()));
  return write_all(client, out.data(), out.size(), never());
}

std::string encode_position(const pod::LogPosition& position) {
  return position.segment.empty() ? "" : fmt::format("{} {}", position.segment, position.offset);
}

Result<pod::LogPosition> decode_position(const std::string& text) {
  pod::LogPosition position;
  if (text.empty()) return position;
  const std::size_t space = text.find(' ');
  const char* end = text.data() + text.size();
  if (space == std::string::npos || !valid_segment(std::string_view(text).substr(0, space)))
    return fail(ErrorKind::invalid, "'{}' is not a place in a log", text);
  position.segment = text.substr(0, space);
  const auto [stop, error] = std::from_chars(text.data() + space + 1, end, position.offset);
  if (error != std::errc{} || stop != end) return fail(ErrorKind::invalid, "'{}' is not a place in a log", text);
  return position;
}

namespace {

void stream_output(Stream& client, LocalPod& pod, const StreamOptions& options, std::mutex& writing) {
  const LocalPod::Watch watch(pod);
  const Fd notify(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  bool watched = false;
  pod::LogPosition position = options.tail ? log_end(pod.log_directory) : options.position;
  const auto send = [&](const std::vector<pod::Frame>& frames) {
    const std::lock_guard lock(writing);
    return write_frames(client, frames, position).has_value();
  };
  // Said at once: a stream that is opened anew must not go back to the beginning.
  if (options.tail && !send({})) return;
  for (;;) {
    // Looked at before the log is read: what was written before the end is read after it was seen.
    const LocalPod::View now = pod.view();
    watch.clear();
    if (!watched && options.follow)
      watched = ::inotify_add_watch(notify.get(), pod.log_directory.c_str(), IN_MODIFY | IN_CREATE | IN_MOVED_TO) >= 0;
    const auto frames = pod::read_log(pod.log_directory, position, batch);
    const auto say = [&](pod::FrameKind kind, const Bytes& bytes) {
      const std::lock_guard lock(writing);
      (void)write_frame(client, kind, bytes);
    };
    if (!frames) {
      const std::string why = frames.error().message();
      return say(frame::failure, Bytes(why.begin(), why.end()));
    }
    if (!frames->empty()) {
      if (!send(*frames)) return;
      continue;
    }
    if (!now.here) return;
    if (!options.follow) return say(frame::end, {});
    if (now.state == PodState::exited) return say(pod::FrameKind::exit, pod::encode_status(now.status.value_or(0)));
    pollfd polls[3] = {{watch.fd(), POLLIN, 0}, {notify.get(), POLLIN, 0}, {client.fd(), POLLRDHUP, 0}};
    ::poll(polls, 3, poll_ms);
    // A client that only reads may shut its sending side down; one that is gone shows as an error or hang-up.
    if ((polls[2].revents & (POLLERR | POLLHUP)) != 0) return;
    if (!options.input && (polls[2].revents & POLLRDHUP) != 0) return;
    char events[4096];
    while (::read(notify.get(), events, sizeof events) > 0) {
    }
  }
}

}  // namespace

void serve_stream(Stream& client, LocalPod& pod, const StreamOptions& options) {
  if (!options.execution.empty()) {
    if (const auto served = serve_execution(client, pod, options); !served) fail_stream(client, served.error());
    return linger(client);
  }
  std::mutex writing;
  {
    std::unique_ptr<Input> input;
    if (options.input && pod.view().state != PodState::exited) {
      auto opened = Input::open(client, pod, writing, {});
      const bool ended = !opened && opened.error().kind == ErrorKind::not_found;
      if (!opened && !ended && opened.error().kind != ErrorKind::gone) fail_stream(client, opened.error());
      if (!opened && !ended) return linger(client);
      if (opened) input = std::move(*opened);
    }
    stream_output(client, pod, options, writing);
  }
  linger(client);
}

}  // namespace godwit::node
