#include "kernel/wait_limit.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

namespace godwit::kernel {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto period = std::chrono::milliseconds(20);
constexpr int idle_periods = 50;  ///< after which the watching thread sleeps until it is called

int limit_signal() {
  return SIGRTMAX - 3;
}

/// One thread's limit; 0 when it has none.
struct Slot {
  std::atomic<Clock::rep> end{0};
  pid_t tid = 0;
  struct Watch* watch = nullptr;
  ~Slot();
};

/// The watching thread of this process and what it looks at. Never destroyed: it runs until the process ends.
struct Watch {
  pid_t process = ::getpid();
  std::mutex mutex;
  std::vector<Slot*> slots;
  std::atomic<bool> asleep{false};

  bool look();
  void run();
};

thread_local Slot own_slot;

Slot::~Slot() {
  if (watch == nullptr || watch->process != ::getpid()) return;
  const std::lock_guard lock(watch->mutex);
  std::erase(watch->slots, this);
}

/// Interrupts whoever is over its limit. True when anybody has a limit.
bool Watch::look() {
  const std::lock_guard lock(mutex);
  const Clock::rep now = Clock::now().time_since_epoch().count();
  bool used = false;
  for (const Slot* slot : slots) {
    const Clock::rep end = slot->end;
    used = used || end != 0;
    if (end != 0 && now >= end) ::syscall(SYS_tgkill, process, slot->tid, limit_signal());
  }
  return used;
}

void Watch::run() {
  for (int idle = 0;;) {
    std::this_thread::sleep_for(period);
    idle = look() ? 0 : idle + 1;
    if (idle < idle_periods) continue;
    asleep = true;
    // A limit set before this store has not seen it; one set after it wakes us.
    if (look()) asleep = false;
    asleep.wait(true);
    idle = 0;
  }
}

/// Enters this thread. A fork takes no threads along, so a child that comes here has a watch of its own made.
void enter(Slot& slot) {
  static std::mutex making;
  static Watch* watch = nullptr;
  const std::lock_guard lock(making);
  sigset_t all, before;
  if (watch == nullptr || watch->process != ::getpid()) {
    struct sigaction nothing {};
    nothing.sa_handler = [](int) {};
    ::sigaction(limit_signal(), &nothing, nullptr);
    watch = new Watch;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([made = watch] { made->run(); }).detach();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ::sigemptyset(&all);
  ::sigaddset(&all, limit_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &all, nullptr);
  slot.tid = ::gettid();
  slot.watch = watch;
  const std::lock_guard entering(watch->mutex);
  watch->slots.push_back(&slot);
}

}  // namespace

WaitLimit::WaitLimit(std::chrono::nanoseconds limit) : end_(Clock::now() + limit) {
  if (own_slot.watch == nullptr || own_slot.watch->process != ::getpid()) enter(own_slot);
  own_slot.end = end_.time_since_epoch().count();
  std::atomic<bool>& asleep = own_slot.watch->asleep;
  if (!asleep) return;
  asleep = false;
  asleep.notify_one();
}

WaitLimit::~WaitLimit() {
  own_slot.end = 0;
}

bool WaitLimit::over() const {
  return Clock::now() >= end_;
}

}  // namespace godwit::kernel
