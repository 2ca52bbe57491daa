#include <sys/eventfd.h>
#include <sys/wait.h>

#include "node/interrupted.hpp"
#include "node/pods.hpp"

namespace godwit::node {
namespace {

/// condition_variable::wait_until overflows with Deadline::max().
Deadline bounded(Deadline deadline) {
  return std::min(deadline, in(std::chrono::hours(24 * 365)));
}

}  // namespace

const char* to_string(PodState state) {
  switch (state) {
    case PodState::running:
      return "running";
    case PodState::leaving:
      return "leaving";
    case PodState::in_doubt:
      return "in doubt";
    case PodState::exited:
      return "exited";
  }
  return "?";
}

int exit_code(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : 255;
}

LocalPod::LocalPod(pod::Spec pod_spec, std::string pod_directory)
    : spec(std::move(pod_spec)), directory(std::move(pod_directory)), log_directory(directory + "/log") {}

LocalPod::~LocalPod() = default;

LocalPod::View LocalPod::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

void LocalPod::change(const std::function<void(View&)>& edit) {
  const std::lock_guard lock(mutex_);
  edit(view_);
  if (view_.state != PodState::leaving && view_.state != PodState::in_doubt) frozen_ = false;
  changed_.notify_all();
  const std::uint64_t one = 1;
  for (const int fd : watches_) (void)!::write(fd, &one, sizeof one);
}

Result<LocalPod::View> LocalPod::wait(const std::function<bool(const View&)>& wanted, Deadline deadline) const {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, bounded(deadline), [&] { return wanted(view_); }))
    return fail(ErrorKind::timeout, "pod {} is still {}", spec.name, to_string(view_.state));
  return view_;
}

Result<void> LocalPod::with(const std::function<Result<void>(pod::Pod&)>& work, std::chrono::seconds patience) {
  const Deadline deadline = in(patience);
  for (;;) {
    const View now =
        TRY(wait([](const View& view) { return !view.here || view.state != PodState::leaving; }, deadline));
    if (!now.here) return fail(ErrorKind::gone, "pod {} is not on this node any more", spec.name);
    if (now.state == PodState::exited) return fail(ErrorKind::not_found, "pod {} has ended", spec.name);
    if (now.state == PodState::in_doubt)
      return std::unexpected(Error{ErrorKind::busy, fmt::format("pod {} is in doubt: {}", spec.name, now.note), 0,
                                   "it goes on when the store answers; godwit resolve decides without it"});
    const std::lock_guard alone(use_);
    if (!pod_ || view().state != PodState::running) continue;
    return work(*pod_);
  }
}

Result<std::size_t> LocalPod::put_input(int stream, BytesView bytes, const std::atomic<bool>& stop) const {
  std::unique_lock lock(mutex_);
  while (view_.here && frozen_ && !stop) changed_.wait_for(lock, std::chrono::milliseconds(50));
  if (!view_.here) return fail(ErrorKind::gone, "pod {} is not on this node any more", spec.name);
  if (stop) return fail(ErrorKind::cancelled, "the client is gone");
  // With the lock: a migration that is about to freeze the pod waits for this one write.
  const ssize_t size = ::write(stream, bytes.data(), bytes.size());
  if (size >= 0) return static_cast<std::size_t>(size);
  if (errno == EAGAIN || errno == EINTR) return std::size_t{0};
  return fail_errno("write the input of pod {}", spec.name);
}

LocalPod::Watch::Watch(const LocalPod& pod) : pod_(pod), fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  const std::lock_guard lock(pod_.mutex_);
  pod_.watches_.insert(fd_.get());
}

LocalPod::Watch::~Watch() {
  const std::lock_guard lock(pod_.mutex_);
  pod_.watches_.erase(fd_.get());
}

void LocalPod::Watch::clear() const {
  std::uint64_t count = 0;
  (void)!::read(fd_.get(), &count, sizeof count);
}

}  // namespace godwit::node
