#include "pod/workshop.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "base/caught.hpp"

namespace godwit::pod {

struct Workshop::Parts {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<Result<void>()>> queue;
  std::optional<Error> problem;  ///< first one since the last wait
  bool busy = true;              ///< until it stands in the pod, and while it works
  bool closing = false;
  std::thread thread;

  void live(const Namespaces& namespaces);
  Result<void> wait();
};

namespace {

Result<void> enter(const Namespaces& namespaces) {
  // Mount namespaces can't be entered by a thread that shares its root and working directory with others.
  if (unshare(CLONE_FS) != 0) return fail_errno("unshare the root directory");
  if (setns(namespaces.net.get(), CLONE_NEWNET) != 0) return fail_errno("enter the pod's net namespace");
  if (setns(namespaces.ipc.get(), CLONE_NEWIPC) != 0) return fail_errno("enter the pod's ipc namespace");
  if (setns(namespaces.uts.get(), CLONE_NEWUTS) != 0) return fail_errno("enter the pod's uts namespace");
  if (setns(namespaces.mount.get(), CLONE_NEWNS) != 0) return fail_errno("enter the pod's mount namespace");
  return {};
}

}  // namespace

void Workshop::Parts::live(const Namespaces& namespaces) {
  pthread_setname_np(pthread_self(), "godwit-workshop");
  auto outcome = enter(namespaces);
  std::unique_lock lock(mutex);
  // From here the thread is in the pod, or the opener learns why not and ends it.
  for (;;) {
    if (!outcome && !problem) problem = std::move(outcome).error();
    if (queue.empty()) {
      busy = false;
      changed.notify_all();
      changed.wait(lock, [&] { return closing || !queue.empty(); });
      if (queue.empty()) return;
    }
    busy = true;
    const auto work = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    outcome = caught(work);
    lock.lock();
  }
}

Result<void> Workshop::Parts::wait() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return !busy && queue.empty(); });
  if (!problem) return {};
  Error error = std::move(*problem);
  problem.reset();
  return std::unexpected(std::move(error));
}

Result<std::unique_ptr<Workshop>> Workshop::open(const Namespaces& namespaces) {
  auto parts = std::make_unique<Parts>();
  try {
    parts->thread = std::thread([&, raw = parts.get()] { raw->live(namespaces); });
  } catch (const std::system_error& error) {
    return fail(ErrorKind::failed, "start the workshop's thread: {}", error.what());
  }
  std::unique_ptr<Workshop> workshop(new Workshop(std::move(parts)));
  TRY(workshop->wait());
  return workshop;
}

Workshop::Workshop(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Workshop::~Workshop() {
  {
    const std::lock_guard lock(parts_->mutex);
    parts_->closing = true;
  }
  parts_->changed.notify_all();
  parts_->thread.join();
}

Result<void> Workshop::run(const std::function<Result<void>()>& work) {
  TRY(wait());
  begin(work);
  return wait();
}

void Workshop::begin(std::function<Result<void>()> work) {
  {
    const std::lock_guard lock(parts_->mutex);
    parts_->queue.push_back(std::move(work));
  }
  parts_->changed.notify_all();
}

Result<void> Workshop::wait() {
  return parts_->wait();
}

}  // namespace godwit::pod
