#include <sys/socket.h>

#include "base/random.hpp"
#include "node/input.hpp"
#include "node/stream.hpp"

namespace godwit::node {
namespace {

/// What the init keeps fits in, so that nothing is lost when the pod ends with the program.
constexpr int init_buffer = 2 * MiB;

bool is_decided(const LocalPod::View& view) {
  return !view.here || (view.state != PodState::leaving && view.state != PodState::in_doubt);
}

/// Ends when the program has and all is sent; earlier when the pod leaves, another reader comes, or the client goes.
Result<void> forward_output(Stream& client, std::mutex& writing, LocalPod& pod, Stream& init,
                            pod::LogPosition position) {
  FrameReader frames(init);
  for (;;) {
    const auto frame = frames.next();
    if (!frame) return {};
    if (frame->kind == pod::FrameKind::exit) {
      // What is left of a pod that has moved is killed here: that isn't how the program ended.
      if (!TRY(pod.wait(is_decided, never())).here) return {};
      const std::lock_guard lock(writing);
      return write_frame(client, frame->kind, frame->bytes);
    }
    position.offset += pod::frame_header + frame->bytes.size();
    const std::lock_guard lock(writing);
    TRY(write_frames(client, std::span(&*frame, 1), position));
  }
}

}  // namespace

Result<std::string> start_execution(LocalPod& pod, const pod::Program& program) {
  auto id = TRY(random_hex(8));
  TRY(pod.with([&](pod::Pod& held) -> Result<void> {
    TRY(held.execute(id, program));
    pod.executions.know(id);
    return {};
  }));
  return id;
}

Result<void> close_execution(LocalPod& pod, const std::string& id) {
  return pod.with([&](pod::Pod& held) {
    pod.executions.forget(id);
    return held.close(id);
  });
}

Result<void> serve_execution(Stream& client, LocalPod& pod, const StreamOptions& options) {
  const std::string& id = options.execution;
  const Attendance::Reader here(pod.executions, id);
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("socketpair");
  Stream init{Fd(pair[0])};
  Fd theirs(pair[1]);
  ::setsockopt(theirs.get(), SOL_SOCKET, SO_SNDBUFFORCE, &init_buffer, sizeof init_buffer);
  auto joined = pod.with([&](pod::Pod& held) { return held.attach(id, options.position.offset, theirs.get()); });
  theirs.reset();
  // It left while we waited: whoever follows it comes back to where it is now.
  if (!joined && joined.error().kind == ErrorKind::gone) return {};
  TRY(std::move(joined));
  std::mutex writing;
  const auto input = Input::open(client, pod, writing, {id, init.fd()});
  if (!input && input.error().kind != ErrorKind::gone) return std::unexpected(input.error());
  if (!input) return {};
  // That the client is gone is nobody's error.
  (void)forward_output(client, writing, pod, init, {id, options.position.offset});
  return {};
}

}  // namespace godwit::node
