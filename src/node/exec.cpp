#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

#include <array>
#include <atomic>
#include <thread>

#include "node/stream.hpp"

namespace godwit::node {
namespace {

/// Our ends of a program's streams.
struct Streams {
  Fd input;          ///< what it reads; none: /dev/null
  Fd output, error;  ///< what it writes; `error` not with a terminal
  std::array<Fd, 3> theirs;
  bool terminal = false;
};

Result<std::pair<Fd, Fd>> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe");
  return std::pair(Fd(ends[0]), Fd(ends[1]));
}

Result<Streams> make_streams(pod::Pod& pod, const pod::Program& program) {
  Streams streams;
  if (program.terminal) {
    auto terminal = TRY(pod.open_terminal());
    streams.terminal = true;
    for (Fd& fd : streams.theirs) fd = Fd(::fcntl(terminal.slave.get(), F_DUPFD_CLOEXEC, 0));
    streams.input = Fd(::fcntl(terminal.master.get(), F_DUPFD_CLOEXEC, 0));
    streams.output = std::move(terminal.master);
    return streams;
  }
  if (program.input) {
    auto [read, write] = TRY(make_pipe());
    streams.theirs[0] = std::move(read);
    streams.input = std::move(write);
    // Whoever writes there must be able to give up.
    ::fcntl(streams.input.get(), F_SETFL, O_NONBLOCK);
  } else {
    streams.theirs[0] = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  auto [out_read, out_write] = TRY(make_pipe());
  auto [error_read, error_write] = TRY(make_pipe());
  streams.output = std::move(out_read);
  streams.theirs[1] = std::move(out_write);
  streams.error = std::move(error_read);
  streams.theirs[2] = std::move(error_write);
  return streams;
}

/// Frames of the client to the program; ends with the client, or when told to `stop`.
void feed(Stream& client, Streams& streams, const std::atomic<bool>& stop) {
  FrameReader reader(client);
  for (;;) {
    const auto got = reader.next();
    if (!got) break;
    if (got->kind == pod::FrameKind::window && got->bytes.size() == 4 && streams.terminal) {
      winsize size{};
      size.ws_row = static_cast<unsigned short>(got->bytes[0] | got->bytes[1] << 8);
      size.ws_col = static_cast<unsigned short>(got->bytes[2] | got->bytes[3] << 8);
      ::ioctl(streams.input.get(), TIOCSWINSZ, &size);
    }
    if (got->kind != pod::FrameKind::input || !streams.input) continue;
    if (got->bytes.empty()) {
      const char end_of_file = 4;
      if (streams.terminal) (void)!::write(streams.input.get(), &end_of_file, 1);
      if (!streams.terminal) streams.input.reset();
      continue;
    }
    std::size_t done = 0;
    while (done < got->bytes.size() && !stop) {
      const ssize_t size = ::write(streams.input.get(), got->bytes.data() + done, got->bytes.size() - done);
      if (size > 0) done += static_cast<std::size_t>(size);
      if (size > 0) continue;
      if (errno != EAGAIN && errno != EINTR) break;
      pollfd room{streams.input.get(), POLLOUT, 0};
      ::poll(&room, 1, 100);
    }
  }
}

/// Reads what is there; false when the client is gone. A stream that has ended is closed.
bool forward(Stream& client, Fd& source, pod::FrameKind kind) {
  std::uint8_t buffer[32768];
  const ssize_t got = ::read(source.get(), buffer, sizeof buffer);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  // A terminal without another user is EIO.
  if (got <= 0) source.reset();
  return got <= 0 || write_frame(client, kind, BytesView(buffer, static_cast<std::size_t>(got))).has_value();
}

/// The program's output to the client until the program has ended and nothing is left in its streams: something it left
/// behind may hold them open for ever. `gone` when the client is, or the pod ended with the program.
Result<int> pump(Stream& client, LocalPod& pod, PodPid pid, Streams& streams) {
  const LocalPod::Watch watch(pod);
  const auto kind = streams.terminal ? pod::FrameKind::terminal : pod::FrameKind::output;
  std::optional<int> status;
  for (;;) {
    watch.clear();
    if (!status) {
      const auto known = pod.wait_program(pid, Deadline::clock::now());
      if (!known && known.error().kind != ErrorKind::timeout) return known;
      if (known) status = *known;
    }
    pollfd polls[4] = {{streams.output.get(), POLLIN, 0},
                       {streams.error.get(), POLLIN, 0},
                       {watch.fd(), POLLIN, 0},
                       {client.fd(), 0, 0}};
    if (::poll(polls, 4, status ? 0 : -1) == 0 && status) return *status;
    if ((polls[3].revents & (POLLERR | POLLHUP)) != 0) return fail(ErrorKind::gone, "the client is gone");
    if (polls[0].revents != 0 && !forward(client, streams.output, kind))
      return fail(ErrorKind::gone, "the client is gone");
    if (polls[1].revents != 0 && !forward(client, streams.error, pod::FrameKind::error))
      return fail(ErrorKind::gone, "the client is gone");
    if (status && polls[0].revents == 0 && polls[1].revents == 0) return *status;
  }
}

}  // namespace

Result<void> serve_exec(Stream& client, LocalPod& pod, const pod::Program& program,
                        const std::function<Result<void>()>& started) {
  Streams streams;
  PodPid pid;
  TRY(pod.with([&](pod::Pod& held) -> Result<void> {
    streams = TRY(make_streams(held, program));
    const std::array<int, 3> stdio{streams.theirs[0].get(), streams.theirs[1].get(), streams.theirs[2].get()};
    pid = TRY(held.start(program, false, stdio)).pid;
    for (Fd& end : streams.theirs) end.reset();
    return {};
  }));
  TRY(started());
  std::atomic<bool> stop = false;
  std::thread feeder([&] { feed(client, streams, stop); });
  const Result<int> status = pump(client, pod, pid, streams);
  if (status) (void)write_frame(client, pod::FrameKind::exit, encode_status(*status));
  if (!status) (void)write_frame(client, frame::failure, status.error().message());
  // What the client still sends is for nobody. When it was the client that went, a terminal hangs up now and pipes
  // break.
  stop = true;
  ::shutdown(client.fd(), SHUT_RD);
  feeder.join();
  return {};
}

}  // namespace godwit::node
