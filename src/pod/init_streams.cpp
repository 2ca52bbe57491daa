#include "pod/init_streams.hpp"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace godwit::pod {

namespace {

constexpr std::size_t backlog_limit = 256 * KiB;  ///< what a client that doesn't read may have waiting
constexpr std::size_t input_limit = 64 * KiB;
constexpr std::size_t clients_limit = 64;

Result<std::pair<Fd, Fd>> make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("make a pipe");
  return std::pair(Fd(ends[0]), Fd(ends[1]));
}

void set_nonblocking(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

}  // namespace

Result<std::pair<Fd, Fd>> make_terminal() {
  Fd master(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
  if (!master) return fail_errno("open /dev/ptmx in the pod");
  char name[64];
  if (unlockpt(master.get()) != 0 || ptsname_r(master.get(), name, sizeof name) != 0)
    return fail_errno("unlock a terminal in the pod");
  Fd slave(::open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!slave) return fail_errno("open {} in the pod", name);
  return std::pair(std::move(master), std::move(slave));
}

Result<void> Streams::open(bool terminal, bool input) {
  if (terminal) {
    auto [master, slave] = TRY(make_terminal());
    slave_ = std::move(slave);
    sources_.push_back({FrameKind::terminal, std::move(master)});
    return {};
  }
  const auto output = [&](FrameKind kind, Fd& pod_end) -> Result<void> {
    auto [read, write] = TRY(make_pipe());
    set_nonblocking(read.get());
    pod_end = std::move(write);
    sources_.push_back({kind, std::move(read)});
    return {};
  };
  TRY(output(FrameKind::output, stdout_));
  TRY(output(FrameKind::error, stderr_));
  if (!input) return {};
  auto [read, write] = TRY(make_pipe());
  set_nonblocking(write.get());
  stdin_ = std::move(read);
  writer_ = std::move(write);
  return {};
}

std::array<int, 3> Streams::stdio(bool first) const {
  constexpr int null = 0;  // the init's own
  if (slave_) return {first ? slave_.get() : null, slave_.get(), slave_.get()};
  return {first && stdin_ ? stdin_.get() : null, stdout_.get(), stderr_.get()};
}

std::vector<std::pair<std::string, int>> Streams::ends() const {
  if (slave_) return {{"terminal", slave_.get()}};
  std::vector<std::pair<std::string, int>> all = {{"stdout", stdout_.get()}, {"stderr", stderr_.get()}};
  if (stdin_) all.emplace_back("stdin", stdin_.get());
  return all;
}

int Streams::own_end(const std::string& name) const {
  if (name == "stdin-writer") return writer_.get();
  if (name == "terminal-master" && slave_) return sources_.front().read.get();
  return -1;
}

void Streams::end_input() {
  input_ended_ = true;
  write_input();
}

void Streams::attach(Fd client) {
  if (clients_.size() >= clients_limit) return;
  set_nonblocking(client.get());
  clients_.push_back(std::make_shared<Client>(Client{std::move(client), {}, {}, false}));
}

bool Streams::read_some(const Source& source) {
  Bytes bytes(frame_limit);
  const ssize_t got = ::read(source.read.get(), bytes.data(), bytes.size());
  if (got <= 0) return false;
  bytes.resize(static_cast<std::size_t>(got));
  log_.append(source.kind, bytes);
  for (const auto& client : clients_) {
    append_frame(client->to_send, source.kind, bytes);
    send(*client);
  }
  return true;
}

void Streams::drain() {
  // Bounded: while a process writes as fast as we read there would be no end.
  for (const auto& source : sources_)
    for (int i = 0; i < 64 && read_some(source); ++i) {
    }
}

void Streams::flush() {
  drain();
  log_.end_segment();
}

void Streams::finish(int status) {
  drain();
  Bytes bytes;
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<unsigned>(status) >> shift & 0xff);
  for (const auto& client : clients_) {
    append_frame(client->to_send, FrameKind::exit, bytes);
    client->closing = true;
    send(*client);
  }
}

void Streams::send(Client& client) const {
  while (client.socket && !client.to_send.empty()) {
    const ssize_t sent =
        ::send(client.socket.get(), client.to_send.data(), client.to_send.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent <= 0) {
      client.socket.reset();
      return;
    }
    client.to_send.erase(client.to_send.begin(), client.to_send.begin() + sent);
  }
  if (client.closing) client.socket.reset();
}

void Streams::receive(Client& client) {
  Bytes bytes(input_limit);
  const ssize_t got = ::recv(client.socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    client.socket.reset();
    return;
  }
  client.received.insert(client.received.end(), bytes.begin(), bytes.begin() + got);
  for (;;) {
    Frame frame;
    const auto taken = take_frame(client.received, frame);
    if (!taken) client.socket.reset();
    if (!taken || !*taken) break;
    handle(frame);
  }
  write_input();
}

void Streams::handle(const Frame& frame) {
  if (frame.kind == FrameKind::input) {
    input_.insert(input_.end(), frame.bytes.begin(), frame.bytes.end());
    if (frame.bytes.empty() && !slave_) input_ended_ = true;
  }
  if (frame.kind == FrameKind::window && slave_ && frame.bytes.size() == 4) {
    winsize size{};
    size.ws_row = static_cast<unsigned short>(frame.bytes[0] | frame.bytes[1] << 8);
    size.ws_col = static_cast<unsigned short>(frame.bytes[2] | frame.bytes[3] << 8);
    ioctl(sources_.front().read.get(), TIOCSWINSZ, &size);
  }
}

void Streams::write_input() {
  const int target = slave_ ? sources_.front().read.get() : writer_.get();
  if (target < 0) input_.clear();
  while (!input_.empty()) {
    const ssize_t wrote = ::write(target, input_.data(), input_.size());
    if (wrote < 0 && errno == EAGAIN) return;
    if (wrote <= 0) {
      input_.clear();
      return;
    }
    input_.erase(input_.begin(), input_.begin() + wrote);
  }
  if (input_ended_) writer_.reset();
}

bool Streams::held_up() const {
  return std::ranges::any_of(clients_, [](const auto& client) { return client->to_send.size() > backlog_limit; });
}

void Streams::watch(std::vector<Watch>& all) {
  std::erase_if(clients_, [](const auto& client) { return !client->socket; });
  const int target = slave_ ? sources_.front().read.get() : writer_.get();
  const bool writing = !input_.empty() && target >= 0;
  for (const Source& source : sources_) {
    // Both directions of a terminal go through one descriptor.
    const bool both = slave_ && writing;
    const short events = static_cast<short>((held_up() ? 0 : POLLIN) | (both ? POLLOUT : 0));
    if (events == 0) continue;
    all.push_back({source.read.get(), events, [this, &source](short ready) {
                     if ((ready & POLLIN) != 0) read_some(source);
                     if ((ready & POLLOUT) != 0) write_input();
                   }});
  }
  if (writing && !slave_) all.push_back({target, POLLOUT, [this](short) { write_input(); }});
  for (const auto& client : clients_) {
    const bool listening = input_.size() < input_limit && !client->closing;
    const short events = static_cast<short>((listening ? POLLIN : 0) | (client->to_send.empty() ? 0 : POLLOUT));
    all.push_back({client->socket.get(), events, [this, client](short ready) {
                     if (client->socket && (ready & POLLOUT) != 0) send(*client);
                     if (client->socket && (ready & (POLLIN | POLLHUP | POLLERR)) != 0) receive(*client);
                   }});
  }
}

}  // namespace godwit::pod
