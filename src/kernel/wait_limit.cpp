#include "kernel/wait_limit.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <memory>
#include <mutex>
#include <new>
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

/// The watching thread of this process, made if there is none. A fork takes no threads along, so a child that comes
/// here has a watch of its own. Null where no thread can be had.
Watch* watching() {
  static std::mutex making;
  static Watch* watch = nullptr;
  const std::lock_guard lock(making);
  if (watch != nullptr && watch->process == ::getpid()) return watch;
  struct sigaction nothing {};
  nothing.sa_handler = [](int) {};
  ::sigaction(limit_signal(), &nothing, nullptr);
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    auto made = std::make_unique<Watch>();
    std::thread([looking = made.get()] { looking->run(); }).detach();
    watch = made.release();
  } catch (const std::exception&) {
    watch = nullptr;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return watch;
}

/// Enters this thread, or leaves it without a limit: whoever waits for a tracee does so in destructors, too.
void enter(Slot& slot) {
  Watch* const watch = watching();
  if (watch == nullptr) return;
  sigset_t limit;
  ::sigemptyset(&limit);
  ::sigaddset(&limit, limit_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &limit, nullptr);
  const std::lock_guard entering(watch->mutex);
  try {
    watch->slots.push_back(&slot);
  } catch (const std::bad_alloc&) {
    return;
  }
  slot.tid = ::gettid();
  slot.watch = watch;
}

}  // namespace

bool WaitLimit::prepare() {
  return watching() != nullptr;
}

WaitLimit::WaitLimit(std::chrono::nanoseconds limit) : end_(Clock::now() + limit) {
  const auto entered = [] { return own_slot.watch != nullptr && own_slot.watch->process == ::getpid(); };
  if (!entered()) enter(own_slot);
  own_slot.end = end_.time_since_epoch().count();
  if (!entered()) return;
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
