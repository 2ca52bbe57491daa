#include "objects/interrupted.hpp"

#include <arpa/inet.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>

#include <thread>

#include "transplant.hpp"

namespace godwit::test {
namespace {

constexpr long timeout_ms = 800;

long now_ms() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1'000'000;
}

/// A call that waits for 800 ms of nothing: moved in the middle, it must end in its own way, at the right time.
struct Sleep {
  const char* name;
  std::function<long()> call;
  long expected;       ///< result, or minus errno
  long late_by = 120;  ///< ms that a busy machine may add
};

long raw(long result) {
  return result < 0 ? -errno : result;
}

timespec relative() {
  return {.tv_sec = 0, .tv_nsec = timeout_ms * 1'000'000};
}

void check(Shared& shared, const Sleep& sleep) {
  const long began = now_ms();
  shared.ready++;
  const long result = sleep.call();
  const long took = now_ms() - began;
  const std::string name(sleep.name);
  if (result != sleep.expected) shared.complain((name + " answers").c_str(), result, sleep.expected);
  // The scheduler's figure of when the sleep began is good to a few ms; early is not.
  if (took < timeout_ms - 3 || took > timeout_ms + sleep.late_by)
    shared.complain((name + " took ms").c_str(), took, timeout_ms);
  if (shared.moved == 0) shared.complain((name + " ended before the move").c_str(), 0, 1);
}

std::vector<Sleep> sleeps() {
  static int word = 7;
  static const int watched = ::eventfd(0, 0);
  static const int epoll = ::epoll_create1(0);
  static std::array<int, 2> pair{};
  ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair.data());
  const timeval receive{.tv_sec = 0, .tv_usec = timeout_ms * 1000};
  ::setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive);
  epoll_event event{.events = EPOLLIN, .data = {}};
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, watched, &event);
  return {
      {"nanosleep",
       [] {
         timespec time = relative(), rest{};
         return raw(::syscall(SYS_nanosleep, &time, &rest));
       },
       0},
      {"nanosleep into itself",
       [] {
         timespec time = relative();
         return raw(::syscall(SYS_nanosleep, &time, &time));
       },
       0},
      {"nanosleep without remainder",
       [] {
         const timespec time = relative();
         return raw(::syscall(SYS_nanosleep, &time, nullptr));
       },
       0},
      {"clock_nanosleep",
       [] {
         const timespec time = relative();
         return raw(::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, nullptr));
       },
       0},
      {"clock_nanosleep absolute",
       [] {
         timespec time{};
         ::clock_gettime(CLOCK_MONOTONIC, &time);
         time.tv_nsec += timeout_ms * 1'000'000;
         time.tv_sec += time.tv_nsec / 1'000'000'000;
         time.tv_nsec %= 1'000'000'000;
         return raw(::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr));
       },
       0},
      {"poll",
       [] {
         pollfd one{.fd = watched, .events = POLLIN, .revents = 0};
         return raw(::syscall(SYS_poll, &one, 1, timeout_ms));
       },
       0},
      {"ppoll",
       [] {
         pollfd one{.fd = watched, .events = POLLIN, .revents = 0};
         timespec time = relative();
         return raw(::syscall(SYS_ppoll, &one, 1, &time, nullptr, 8));
       },
       0},
      {"select",
       [] {
         timeval time{.tv_sec = 0, .tv_usec = timeout_ms * 1000};
         return raw(::syscall(SYS_select, 0, nullptr, nullptr, nullptr, &time));
       },
       0},
      {"futex",
       [] {
         const timespec time = relative();
         return raw(::syscall(SYS_futex, &word, FUTEX_WAIT, 7, &time, nullptr, 0));
       },
       -ETIMEDOUT},
      {"futex absolute",
       [] {
         timespec time{};
         ::clock_gettime(CLOCK_MONOTONIC, &time);
         time.tv_nsec += timeout_ms * 1'000'000;
         time.tv_sec += time.tv_nsec / 1'000'000'000;
         time.tv_nsec %= 1'000'000'000;
         return raw(::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 7, &time, nullptr, ~0U));
       },
       -ETIMEDOUT},
      {"epoll_wait",
       [] {
         epoll_event one{};
         return raw(::syscall(SYS_epoll_wait, epoll, &one, 1, timeout_ms));
       },
       0},
      {"epoll_pwait2",
       [] {
         epoll_event one{};
         const timespec time = relative();
         return raw(::syscall(441, epoll, &one, 1, &time, nullptr, 8));
       },
       0},
      {"recv with SO_RCVTIMEO",
       [] {
         char byte = 0;
         const long result = raw(::recv(pair[0], &byte, 1, 0));
         timeval left{};
         socklen_t size = sizeof left;
         ::getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &left, &size);
         // The kernel keeps it in ticks of 4 ms.
         return left.tv_usec == timeout_ms * 1000 ? result : -left.tv_usec;
       },
       -EAGAIN},
      {"rt_sigtimedwait",
       [] {
         const std::uint64_t set = 1ULL << (SIGRTMIN + 3 - 1);
         const timespec time = relative();
         const long result = raw(::syscall(SYS_rt_sigtimedwait, &set, nullptr, &time, 8));
         return time.tv_nsec == timeout_ms * 1'000'000 ? result : -time.tv_nsec;
       },
       -EAGAIN},
      {"semtimedop",
       [] {
         const int set = ::semget(IPC_PRIVATE, 1, 0600);
         sembuf down{.sem_num = 0, .sem_op = -1, .sem_flg = 0};
         const timespec time = relative();
         const long result = raw(::syscall(SYS_semtimedop, set, &down, 1, &time));
         ::semctl(set, 0, IPC_RMID);
         return time.tv_nsec == timeout_ms * 1'000'000 ? result : -time.tv_nsec;
       },
       -EAGAIN},
  };
}

TEST(Interrupted, SleepsEndInTheirOwnWayAtTheRightTime) {
  Transplant transplant([](Shared& shared) {
    const auto all = sleeps();
    std::vector<std::thread> threads;
    for (const Sleep& sleep : all) threads.emplace_back([&] { check(shared, sleep); });
    for (auto& thread : threads) thread.join();
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(static_cast<int>(sleeps().size()));
  ::usleep(300'000);  // the time that must not be slept again
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
}

/// Every call from one place, as some libraries make them: the number doesn't stand before it.
[[gnu::noinline]] long call_from_one_place(long number, const void* first, std::uint64_t second, std::uint64_t third) {
  long result = 0;
  asm volatile("syscall" : "=a"(result) : "a"(number), "D"(first), "S"(second), "d"(third) : "rcx", "r11", "memory");
  return result;
}

TEST(Interrupted, AnotherCallFromTheSamePlaceIsNotTakenForTheRestartedOne) {
  Transplant transplant([](Shared& shared) {
    const timespec time{.tv_sec = 0, .tv_nsec = timeout_ms * 1'000'000};
    shared.ready = 1;
    (void)call_from_one_place(SYS_nanosleep, &time, 0, 0);
    pollfd none{.fd = -1, .events = 0, .revents = 0};
    shared.ready = 2;
    return static_cast<int>(call_from_one_place(SYS_poll, &none, 1, 10'000));
  });
  const HostPid tid{transplant.pid()};
  const auto clock = objects::PodClock::of(tid);
  ASSERT_TRUE(clock);
  const auto stop = [&] {
    auto thread = kernel::Tracee::seize(tid);
    EXPECT_TRUE(thread && thread->interrupt() && thread->wait_stop());
    return std::move(*thread);
  };
  const auto described = [&](kernel::Tracee& thread) {
    return objects::describe(thread, *thread.registers(), {}, *clock);
  };
  transplant.wait_ready(1);
  {
    auto thread = stop();
    const auto call = described(thread);
    ASSERT_TRUE(call && call->number == SYS_nanosleep);
    auto gadget = kernel::Gadget::install(thread);
    ASSERT_TRUE(gadget);
    const auto mask = thread.signal_mask();
    ASSERT_TRUE(thread.set_signal_mask(~0ULL));
    const auto armed = objects::rearm(*gadget, thread, *call, *thread.registers(), *clock);
    ASSERT_TRUE(armed);
    ASSERT_TRUE(gadget->remove(thread) && thread.set_registers(armed->registers) && thread.set_signal_mask(*mask));
  }
  transplant.wait_ready(1);
  {
    // As long as it is the same call it is known.
    auto thread = stop();
    ASSERT_EQ(thread.registers()->orig_rax, static_cast<unsigned long long>(SYS_restart_syscall));
    const auto call = described(thread);
    ASSERT_TRUE(call) << call.error().message();
    EXPECT_EQ(call->number, SYS_nanosleep);
  }
  transplant.wait_ready(2);
  // Whoever it was that stopped it, the kernel has restarted it since.
  (void)stop();
  transplant.wait_ready(2);
  auto thread = stop();
  ASSERT_EQ(thread.registers()->orig_rax, static_cast<unsigned long long>(SYS_restart_syscall));
  const auto call = described(thread);
  EXPECT_TRUE(!call && call.error().kind == ErrorKind::refused) << (call ? call->number : -1);
}

}  // namespace
}  // namespace godwit::test
