#include "objects/thread_state.hpp"

#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <thread>

#include "transplant.hpp"

namespace godwit::test {
namespace {

long mask_of_self() {
  std::uint64_t mask = 0;
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, nullptr, &mask, 8);
  return static_cast<long>(mask);
}

/// Fills registers with `seed`, spins until the flag is set, and looks whether they are the same: vector registers to
/// their full AVX width, the x87 stack, both control words, and the general ones.
long spin_with_registers(const std::atomic<int>& flag, std::uint64_t seed) {
  alignas(32) std::array<std::uint64_t, 4> in{seed, seed * 3, seed * 5, seed * 7};
  alignas(32) std::array<std::uint64_t, 4> low{}, high{};
  std::uint32_t control = 0x1f80 | (seed & 3) << 13, control_after = 0;
  std::uint16_t x87 = 0x037f | static_cast<std::uint16_t>((seed & 3) << 10), x87_after = 0;
  std::uint64_t r15 = 0, r9 = 0, direction = 0;
  const double pushed = static_cast<double>(seed);
  double popped = 0;
  asm volatile(
      "vmovdqa %[in], %%ymm0\n vmovdqa %[in], %%ymm15\n ldmxcsr %[control]\n fldcw %[x87]\n fldl %[pushed]\n"
      "mov %[seed], %%r15\n lea 1(%%r15), %%r9\n std\n"
      "1: pause\n cmpl $0, (%[flag])\n je 1b\n"
      "pushfq\n pop %[direction]\n cld\n"
      "vmovdqa %%ymm0, %[low]\n vmovdqa %%ymm15, %[high]\n stmxcsr %[control_after]\n fnstcw %[x87_after]\n"
      "fstpl %[popped]\n mov %%r15, %[r15]\n mov %%r9, %[r9]\n"
      : [low] "=m"(low), [high] "=m"(high), [control_after] "=m"(control_after), [x87_after] "=m"(x87_after),
        [popped] "=m"(popped), [r15] "=m"(r15), [r9] "=m"(r9), [direction] "=&r"(direction)
      : [in] "m"(in), [control] "m"(control), [x87] "m"(x87), [pushed] "m"(pushed), [seed] "r"(seed), [flag] "r"(&flag)
      : "xmm0", "xmm15", "r15", "r9", "cc", "memory");
  const std::uint32_t usual = 0x1f80;
  const std::uint16_t usual_x87 = 0x037f;
  asm volatile("ldmxcsr %0\n fldcw %1" ::"m"(usual), "m"(usual_x87));
  long wrong = 0;
  if (in != low || in != high) wrong |= 1;
  if ((control_after & ~0x3fU) != (control & ~0x3fU)) wrong |= 2;
  if (x87_after != x87) wrong |= 4;
  if (popped != pushed) wrong |= 8;
  if (r15 != seed || r9 != seed + 1) wrong |= 16;
  if ((direction & 0x400) == 0) wrong |= 32;
  return wrong;
}

/// What one thread sets up, and finds again.
void live(Shared& shared, unsigned number, std::byte* stack) {
  const std::string name = "thread " + std::to_string(number);
  ::prctl(PR_SET_NAME, name.c_str());
  ::prctl(PR_SET_TIMERSLACK, 70'000 + number);
  const std::uint64_t mask = 1ULL << (SIGUSR1 - 1) | 1ULL << (SIGRTMIN + number);
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, 8);
  stack_t alternate{.ss_sp = stack, .ss_flags = 0, .ss_size = 16'384};
  ::sigaltstack(&alternate, nullptr);
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), static_cast<int>(number));
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(number % 2, &cpus);
  ::sched_setaffinity(0, sizeof cpus, &cpus);
  siginfo_t info{};
  info.si_code = -60;
  info.si_value.sival_int = static_cast<int>(1000 + number);
  for (int i = 0; i < 2; ++i, ++info.si_value.sival_int)
    ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::gettid(), SIGRTMIN + 1 + static_cast<int>(number), &info);
  if (number == 2) {  // threads may differ in who they are
    ::syscall(SYS_setresuid, 1001, 1002, 1003);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
  }
  shared.ready++;

  const std::uint64_t seed = 0x0123456789abcde0ULL + number;
  if (const long wrong = spin_with_registers(shared.moved, seed); wrong != 0) shared.complain("registers", wrong, 0);

  char name_after[16] = {};
  ::prctl(PR_GET_NAME, name_after);
  if (name != name_after) shared.complain("name", name_after[7], '0' + number);
  if (const int slack = ::prctl(PR_GET_TIMERSLACK); slack != static_cast<int>(70'000 + number))
    shared.complain("timer slack", slack, 70'000 + number);
  if (mask_of_self() != static_cast<long>(mask)) shared.complain("mask", mask_of_self(), static_cast<long>(mask));
  stack_t found{};
  ::sigaltstack(nullptr, &found);
  if (found.ss_sp != stack || found.ss_size != 16'384) shared.complain("alternate stack", found.ss_size, 16'384);
  if (const int nice = ::getpriority(PRIO_PROCESS, 0); nice != static_cast<int>(number))
    shared.complain("nice", nice, number);
  cpu_set_t cpus_after;
  ::sched_getaffinity(0, sizeof cpus_after, &cpus_after);
  if (!CPU_EQUAL(&cpus, &cpus_after)) shared.complain("affinity", CPU_COUNT(&cpus_after), 1);
  for (int i = 0; i < 2; ++i) {
    siginfo_t queued{};
    timespec none{};
    const long got = ::syscall(SYS_rt_sigtimedwait, &mask, &queued, &none, 8);
    if (got != SIGRTMIN + 1 + static_cast<int>(number)) shared.complain("queued signal", got, SIGRTMIN + 1 + number);
    if (queued.si_value.sival_int != static_cast<int>(1000 + number) + i || queued.si_code != -60)
      shared.complain("its value", queued.si_value.sival_int, 1000 + number + i);
  }
  if (number == 2) {
    uid_t real = 0, effective = 0, saved = 0;
    ::getresuid(&real, &effective, &saved);
    if (real != 1001 || effective != 1002 || saved != 1003) shared.complain("uid", real, 1001);
    int signal = 0;
    ::prctl(PR_GET_PDEATHSIG, &signal);
    if (signal != SIGUSR2) shared.complain("parent-death signal", signal, SIGUSR2);
  }
  // glibc keeps the registered area up to date by the kernel: a thread without registration shows a negative number.
  if (::sched_getcpu() < 0) shared.complain("rseq", ::sched_getcpu(), 0);
}

TEST(ThreadState, ThreadsFindThemselvesAgain) {
  Transplant transplant([](Shared& shared) {
    static std::byte stacks[3][16'384];
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 3; ++i) threads.emplace_back([&, i] { live(shared, i, stacks[i]); });
    // Joining waits for the kernel to clear the thread's id.
    for (auto& thread : threads) thread.join();
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(3, false);
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
}

TEST(ThreadState, UnusedAmxStateDoesNotTravel) {
  Transplant transplant([](Shared& shared) {
    shared.ready++;
    shared.wait_moved();
    return 0;
  });
  transplant.wait_ready(1);
  const auto captured = transplant.capture();
  ASSERT_TRUE(captured) << captured.error().message();
  const auto state = image::unpack<objects::ThreadState>(captured->threads.front());
  ASSERT_TRUE(state);
  EXPECT_LE(state->xstate.size(), 2696U);
}

std::atomic<int> handled{0};

/// Calls that wait for ever go on waiting, end when what they wait for comes, and see a handler as they would have.
TEST(ThreadState, CallsWithoutTimeoutGoOnWaiting) {
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  Transplant transplant([&](Shared& shared) {
    struct sigaction action {};
    action.sa_handler = [](int) { handled++; };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGUSR1, &action, nullptr);
    const int epoll = ::epoll_create1(0);
    epoll_event event{.events = EPOLLIN, .data = {}};
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
    std::thread reader([&] {
      char byte = 0;
      shared.ready++;
      if (const long got = ::read(pipe[0], &byte, 1); got != 1 || byte != 'p') shared.complain("read", got, 1);
      shared.ready++;
    });
    std::thread receiver([&] {
      char byte = 0;
      shared.ready++;
      if (const long got = ::recv(pair[1], &byte, 1, 0); got != 1 || byte != 's') shared.complain("recv", got, 1);
      shared.ready++;
    });
    std::atomic<bool> second{false}, done{false};
    std::thread poller([&] {
      epoll_event one{};
      shared.ready++;
      if (const int got = ::epoll_wait(epoll, &one, 1, -1); got != 1) shared.complain("epoll_wait", got, 1);
      shared.ready++;
      // Interrupted by a handler, it says so: it is never restarted.
      ::epoll_ctl(epoll, EPOLL_CTL_DEL, pair[0], nullptr);
      second = true;
      second.notify_all();
      const int interrupted = ::epoll_wait(epoll, &one, 1, -1);
      if (interrupted != -1 || errno != EINTR) shared.complain("epoll_wait after a signal", interrupted, -1);
      done = true;
    });
    shared.wait_moved();
    reader.join();
    receiver.join();
    if (handled != 1) shared.complain("handler in read", handled, 1);
    second.wait(false);
    while (!done) ::pthread_kill(poller.native_handle(), SIGUSR1), ::usleep(1000);
    poller.join();
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(3);
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  const auto waiting = kernel::list_threads(HostPid{transplant.pid()});
  ASSERT_TRUE(waiting);
  ASSERT_EQ(waiting->size(), 4U);
  // A handler in the middle of a read that restarts doesn't end it.
  ASSERT_EQ(::syscall(SYS_tgkill, transplant.pid(), (*waiting)[1].value, SIGUSR1), 0);
  EXPECT_EQ(::write(pipe[1], "p", 1), 1);
  EXPECT_EQ(::write(pair[0], "s", 1), 1);
  EXPECT_EQ(::write(pair[1], "e", 1), 1);
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
  for (const int fd : {pipe[0], pipe[1], pair[0], pair[1]}) ::close(fd);
}

/// A move that is given up: the program goes on where it was, with the time that is left.
TEST(ThreadState, PutBackAtTheSource) {
  Transplant transplant([](Shared& shared) {
    shared.ready++;
    timespec began{}, ended{};
    ::clock_gettime(CLOCK_MONOTONIC, &began);
    const timespec time{.tv_sec = 0, .tv_nsec = 600'000'000};
    const long result = ::syscall(SYS_nanosleep, &time, nullptr);
    ::clock_gettime(CLOCK_MONOTONIC, &ended);
    const long took = (ended.tv_sec - began.tv_sec) * 1000 + (ended.tv_nsec - began.tv_nsec) / 1'000'000;
    if (result != 0) shared.complain("nanosleep", result, 0);
    if (took < 597 || took > 720) shared.complain("took ms", took, 600);
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(1);
  ::usleep(200'000);
  const auto captured = transplant.capture();
  ASSERT_TRUE(captured) << captured.error().message();
  const auto back = transplant.give_up();
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
}

}  // namespace
}  // namespace godwit::test
