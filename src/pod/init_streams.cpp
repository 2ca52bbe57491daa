#include "pod/init_streams.hpp"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

namespace godwit::pod {

namespace {

Result<std::pair<Fd, Fd>> make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("make a pipe");
  return std::pair(Fd(ends[0]), Fd(ends[1]));
}

void set_nonblocking(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/// A new terminal in the devpts of our root: master (non-blocking), slave.
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

}  // namespace

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

std::array<int, 3> Streams::stdio() const {
  constexpr int null = 0;  // the init's own
  if (slave_) return {slave_.get(), slave_.get(), slave_.get()};
  return {stdin_ ? stdin_.get() : null, stdout_.get(), stderr_.get()};
}

std::vector<std::pair<std::string, int>> Streams::ends() const {
  if (slave_) return {{"terminal", slave_.get()}};
  std::vector<std::pair<std::string, int>> all = {{"stdout", stdout_.get()}, {"stderr", stderr_.get()}};
  if (stdin_) all.emplace_back("stdin", stdin_.get());
  return all;
}

int Streams::own_end(std::string_view name) const {
  if (name == "stdin-writer") return writer_.get();
  if (name == "terminal-master" && slave_) return sources_.front().read.get();
  return -1;
}

bool Streams::read_some(const Source& source) {
  Bytes bytes(frame_limit);
  const ssize_t got = ::read(source.read.get(), bytes.data(), bytes.size());
  if (got <= 0) return false;
  sink_(source.kind, BytesView(bytes.data(), static_cast<std::size_t>(got)));
  return true;
}

void Streams::drain() {
  // Bounded: while a process writes as fast as we read there would be no end.
  for (const auto& source : sources_)
    for (int i = 0; i < 64 && read_some(source); ++i) {
    }
}

void Streams::watch(std::vector<Watch>& all) {
  for (const Source& source : sources_)
    all.push_back({source.read.get(), POLLIN, [this, &source](short) { read_some(source); }});
}

}  // namespace godwit::pod
