#include "cli/session.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

#include "node/follow.hpp"

namespace godwit::cli {
namespace {

using node::write_frame;

constexpr char detach_first = 0x10;   // Ctrl-P
constexpr char detach_second = 0x11;  // Ctrl-Q

/// The terminal in raw mode until the scope ends.
class RawTerminal {
 public:
  RawTerminal() {
    if (::tcgetattr(STDIN_FILENO, &saved_) != 0) return;
    termios raw = saved_;
    ::cfmakeraw(&raw);
    changed_ = ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
  }
  ~RawTerminal() {
    if (changed_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_);
  }

 private:
  termios saved_{};
  bool changed_ = false;
};

void write_out(int fd, const Bytes& bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t size = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (size < 0 && errno == EAGAIN) {
      pollfd room{fd, POLLOUT, 0};
      ::poll(&room, 1, -1);
    } else if (size < 0 && errno != EINTR) {
      return;
    }
    if (size > 0) done += static_cast<std::size_t>(size);
  }
}

/// Our input, signals and window size on their way to the program, on a thread: neither direction waits for the other.
class Sender {
 public:
  Sender(Stream& connection, const Session& session) : connection_(connection), session_(session) {
    sigemptyset(&signals_);
    if (session_.terminal) sigaddset(&signals_, SIGWINCH);
    if (session_.on_signal)
      for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaddset(&signals_, signal);
    ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
    signal_fd_ = Fd(::signalfd(-1, &signals_, SFD_CLOEXEC));
    end_ = Fd(::eventfd(0, EFD_CLOEXEC));
    thread_ = std::thread([this] { run(); });
  }
  ~Sender() {
    const std::uint64_t one = 1;
    (void)!::write(end_.get(), &one, sizeof one);
    ::shutdown(connection_.fd(), SHUT_RDWR);
    thread_.join();
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  [[nodiscard]] bool detached() const { return detached_; }

 private:
  void run() {
    if (session_.terminal) send_window();
    bool input = session_.input || session_.terminal;
    for (;;) {
      pollfd polls[3] = {
          {end_.get(), POLLIN, 0}, {signal_fd_.get(), POLLIN, 0}, {input ? STDIN_FILENO : -1, POLLIN, 0}};
      if (::poll(polls, 3, -1) < 0 && errno != EINTR) return;
      if (polls[0].revents != 0) return;
      if (polls[1].revents != 0) take_signal();
      if (polls[2].revents != 0) input = take_input();
      if (detached_) {
        ::shutdown(connection_.fd(), SHUT_RDWR);
        return;
      }
    }
  }

  void take_signal() {
    signalfd_siginfo info{};
    if (::read(signal_fd_.get(), &info, sizeof info) != sizeof info) return;
    if (info.ssi_signo == SIGWINCH)
      send_window();
    else
      session_.on_signal(static_cast<int>(info.ssi_signo));
  }

  /// False at the end of our input.
  bool take_input() {
    std::uint8_t buffer[16384];
    const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    if (got <= 0) {
      (void)write_frame(connection_, pod::FrameKind::input, BytesView());
      return false;
    }
    if (session_.terminal)
      for (ssize_t i = 0; i < got; i++) {
        detached_ = detached_ || (armed_ && buffer[i] == detach_second);
        armed_ = buffer[i] == detach_first;
      }
    return write_frame(connection_, pod::FrameKind::input, BytesView(buffer, static_cast<std::size_t>(got)))
        .has_value();
  }

  void send_window() const {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 && ::ioctl(STDIN_FILENO, TIOCGWINSZ, &size) != 0) return;
    const Bytes bytes{static_cast<std::uint8_t>(size.ws_row), static_cast<std::uint8_t>(size.ws_row >> 8),
                      static_cast<std::uint8_t>(size.ws_col), static_cast<std::uint8_t>(size.ws_col >> 8)};
    (void)write_frame(connection_, pod::FrameKind::window, bytes);
  }

  Stream& connection_;
  const Session& session_;
  sigset_t signals_{}, before_{};
  Fd signal_fd_, end_;
  bool armed_ = false;
  std::atomic<bool> detached_ = false;
  std::thread thread_;
};

Result<SessionEnd> run_session(Stream& connection, const Session& session) {
  std::optional<RawTerminal> raw;
  if (session.terminal && ::isatty(STDIN_FILENO) == 1) raw.emplace();
  const Sender sender(connection, session);
  node::FrameReader frames(connection);
  for (;;) {
    const auto frame = frames.next();
    if (!frame && sender.detached()) return SessionEnd{.detached = true};
    if (!frame) return fail(ErrorKind::unreachable, "the daemon went away; the program goes on");
    switch (frame->kind) {
      case pod::FrameKind::output:
      case pod::FrameKind::terminal:
        write_out(STDOUT_FILENO, frame->bytes);
        break;
      case pod::FrameKind::error:
        write_out(STDERR_FILENO, frame->bytes);
        break;
      case pod::FrameKind::exit:
        return SessionEnd{.status = TRY(pod::decode_status(*frame))};
      default:
        if (frame->kind == node::frame::failure)
          return fail(ErrorKind::failed, "{}", std::string(frame->bytes.begin(), frame->bytes.end()));
    }
  }
}

class Attached final : public node::FrameSource {
 public:
  explicit Attached(Stream stream) : stream_(std::move(stream)) {}
  Stream& stream() override { return stream_; }

 private:
  Stream stream_;
};

/// What is opened anew whenever a stream breaks off, from where that one has come to.
node::OpenSource source_of(const Client& client, const Joined& joined) {
  return [&client, &joined](const node::StreamOptions& from) -> Result<std::unique_ptr<node::FrameSource>> {
    const std::string target =
        fmt::format("/attach?places&position={}{}{}{}{}", node::http::encode(node::encode_position(from.position)),
                    from.input ? "&input" : "", from.tail ? "&tail" : "", from.follow ? "" : "&once",
                    from.execution.empty() ? "" : "&execution=" + from.execution);
    return std::make_unique<Attached>(TRY(client.upgrade(pod_target(joined.pod, target))));
  };
}

struct Pair {
  Stream ours, theirs;
};

Result<Pair> make_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("socketpair");
  return Pair{Stream(Fd(ends[0])), Stream(Fd(ends[1]))};
}

}  // namespace

// Places are for the follower here, not for what it writes to.

Result<void> read_pod(const Client& client, const Joined& joined, const std::function<bool(const pod::Frame&)>& sink) {
  const node::StreamOptions options{.tail = joined.tail, .follow = joined.follow, .execution = joined.execution};
  const auto open = source_of(client, joined);
  auto first = TRY(open(options));
  auto pair = TRY(make_pair());
  node::follow(pair.theirs, options, std::move(first), open, sink);
  return {};
}

Result<SessionEnd> join_pod(const Client& client, const Joined& joined, const Session& session) {
  const node::StreamOptions options{.tail = joined.tail,
                                    .follow = joined.follow,
                                    .input = session.input || session.terminal,
                                    .execution = joined.execution};
  const auto open = source_of(client, joined);
  auto first = TRY(open(options));
  auto pair = TRY(make_pair());
  // Signals are the session's: a thread that leaves them open takes them away from it.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  std::thread follower([&, theirs = std::move(pair.theirs), source = std::move(first)]() mutable {
    node::follow(theirs, options, std::move(source), open,
                 [&](const pod::Frame& frame) { return write_frame(theirs, frame.kind, frame.bytes).has_value(); });
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  auto end = run_session(pair.ours, session);
  pair.ours.reset();
  follower.join();
  return end;
}

}  // namespace godwit::cli
