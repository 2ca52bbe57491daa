#include "node/input.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

namespace godwit::node {
namespace {

constexpr char end_of_file = 4;  // Ctrl-D
constexpr std::size_t waiting_limit = MiB;

}  // namespace

std::string Input::prefix(const Target& target) {
  return target.execution.empty() ? "" : target.execution + "/";
}

Result<std::unique_ptr<Input>> Input::open(Stream& client, LocalPod& pod, std::mutex& writing, const Target& target) {
  bool terminal = false;
  Fd stream;
  TRY(pod.with([&](pod::Pod& held) -> Result<void> {
    auto end = held.withdraw(prefix(target) + "terminal-master");
    terminal = end.has_value();
    if (!terminal) end = held.withdraw(prefix(target) + "stdin-writer");
    // A program without input, or whose input has ended: what a client sends is for nobody.
    if (end) stream = std::move(*end);
    return {};
  }));
  return std::unique_ptr<Input>(new Input(client, pod, writing, target, std::move(stream), terminal));
}

Input::Input(Stream& client, LocalPod& pod, std::mutex& writing, const Target& target, Fd stream, bool terminal)
    : client_(client),
      pod_(pod),
      writing_(writing),
      target_(target),
      stream_(std::move(stream)),
      terminal_(terminal),
      wake_(::eventfd(0, EFD_CLOEXEC)),
      thread_([this] { run(); }) {}

Input::~Input() {
  stop_ = true;
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  thread_.join();
}

void Input::run() {
  forward();
  if (target_.init >= 0) ::shutdown(target_.init, SHUT_RDWR);
}

void Input::pass_on(const pod::Frame& frame) const {
  Bytes out;
  pod::append_frame(out, frame.kind, frame.bytes);
  if (target_.init >= 0) (void)!::send(target_.init, out.data(), out.size(), MSG_NOSIGNAL);
}

/// What is delivered is passed on while the program takes no input: it may be waiting for just that, with its own
/// output.
void Input::forward() {
  FrameReader frames(client_);
  bool over = false;  // nothing more comes; what has come is still the program's
  while (!over || !waiting_.empty()) {
    const bool listening = !over && waiting_bytes_ < waiting_limit;
    const bool ready = listening && frames.pending();
    pollfd polls[3] = {{listening ? client_.fd() : -1, POLLIN, 0},
                       {wake_.get(), POLLIN, 0},
                       {waiting_.empty() ? -1 : stream_.get(), POLLOUT, 0}};
    if (::poll(polls, 3, ready ? 0 : -1) < 0 && errno != EINTR) return;
    if (stop_) return;
    if (ready || polls[0].revents != 0) {
      auto frame = frames.next();
      over = !frame;
      if (frame) take(std::move(*frame));
    }
    if (!waiting_.empty() && !put()) return;
  }
}

void Input::take(pod::Frame frame) {
  if (frame.kind == pod::FrameKind::window) set_window(frame.bytes);
  if (frame.kind == pod::FrameKind::delivered) pass_on(frame);
  if (frame.kind != pod::FrameKind::input) return;
  waiting_bytes_ += frame.bytes.size();
  waiting_.push_back(std::move(frame.bytes));
}

/// As much as the program takes. False when the rest isn't for this node.
bool Input::put() {
  while (!waiting_.empty()) {
    Bytes& bytes = waiting_.front();
    if (bytes.empty()) {
      if (!end()) return false;
      waiting_.pop_front();
      continue;
    }
    std::size_t size = bytes.size();
    if (stream_) {
      const auto done = pod_.put_input(stream_.get(), bytes, stop_);
      if (!done && (done.error().kind == ErrorKind::gone || done.error().kind == ErrorKind::cancelled)) return false;
      // Its reader is gone: nobody will ever take it.
      if (!done) stream_.reset();
      if (done && *done == 0) return true;
      if (done) size = *done;
    }
    waiting_bytes_ -= size;
    if (size == bytes.size())
      waiting_.pop_front();
    else
      bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    if (!acknowledge(size)) return false;
  }
  return true;
}

bool Input::end() {
  if (terminal_) {
    const auto done =
        pod_.put_input(stream_.get(), BytesView(reinterpret_cast<const std::uint8_t*>(&end_of_file), 1), stop_);
    return done && acknowledge(1);
  }
  if (!stream_) return acknowledge(1);
  const auto ended = pod_.with([&](pod::Pod& held) { return held.forget(prefix(target_) + "stdin-writer"); });
  if (!ended && ended.error().kind == ErrorKind::gone) return false;
  // Ours too: the program reads its end when the last one is closed.
  stream_.reset();
  return acknowledge(1);
}

void Input::set_window(const Bytes& bytes) const {
  if (!terminal_ || !stream_ || bytes.size() != 4) return;
  winsize size{};
  size.ws_row = static_cast<unsigned short>(bytes[0] | bytes[1] << 8);
  size.ws_col = static_cast<unsigned short>(bytes[2] | bytes[3] << 8);
  ::ioctl(stream_.get(), TIOCSWINSZ, &size);
}

bool Input::acknowledge(std::size_t more) {
  accepted_ += more;
  const std::lock_guard lock(writing_);
  return write_frame(client_, frame::accepted, std::to_string(accepted_)).has_value();
}

}  // namespace godwit::node
