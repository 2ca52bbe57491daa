#include "kernel/remote.hpp"

#include <gtest/gtest.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <atomic>
#include <thread>

#include "kernel/memory.hpp"
#include "kernel/pidfd.hpp"

namespace godwit::kernel {
namespace {

std::int64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

/// What a child and its parent both see.
struct Shared {
  std::atomic<int> ready{0};
  std::atomic<int> go{0};
  std::atomic<std::int64_t> value[64]{};
};

/// A forked child that runs `body` and exits with its result. Ended at the end of the scope.
class Child {
 public:
  template <typename Body>
  explicit Child(Body body) {
    shared_ = static_cast<Shared*>(
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    new (shared_) Shared;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit(body(*shared_));
    }
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, __WALL);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] HostPid pid() const { return HostPid{pid_}; }
  Shared& shared() { return *shared_; }
  void await(int ready) {
    while (shared_->ready.load() < ready) std::this_thread::yield();
  }
  /// Until /proc says that the thread sleeps.
  static void await_state(HostPid tid, char state) {
    while (true) {
      const auto stat = read_stat(tid);
      if (!stat || stat->state == state) return;
      std::this_thread::yield();
    }
  }
  int exit_status() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return status;
  }

 private:
  pid_t pid_ = 0;
  Shared* shared_;
};

template <typename T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message();
    std::abort();
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

Tracee stop(HostPid tid, int options = 0) {
  Tracee tracee = must(Tracee::seize(tid, options));
  must(tracee.interrupt());
  must(tracee.wait_stop());
  return tracee;
}

/// Computes something whose result depends on every register being kept, vector registers included.
int compute(Shared& shared) {
  shared.ready = 1;
  std::uint64_t a = 1, b = 2, c = 3, d = 4;
  double x = 1, y = 2, z = 3, w = 4;
  while (shared.go == 0) {
    for (int i = 0; i < 1000; ++i) {
      a += b, b += c, c += d, d += 1;
      x += 1, y += 1, z += 1, w += 1;
    }
    asm volatile("" ::: "memory");
    ++shared.value[0];
    if (y - x != 1 || z - y != 1 || w - z != 1) return 1;
    if (d != static_cast<std::uint64_t>(x) + 3) return 2;
  }
  return 0;
}

TEST(Remote, BatchInASpinningProcessLeavesNoTrace) {
  Child child(compute);
  child.await(1);
  for (int round = 0; round < 20; ++round) {
    Tracee thread = stop(child.pid());
    const Registers before = must(thread.registers());
    const Bytes vectors = must(thread.xstate());
    const std::uint64_t mask = must(thread.signal_mask());
    const auto maps = must(read_maps(child.pid()));
    Gadget gadget = must(Gadget::install(thread));
    for (int repeat = 0; repeat < 5; ++repeat) {
      Batch batch = gadget.batch();
      const auto pid = batch.call(SYS_getpid);
      const RemoteAddress where = batch.space(sizeof(timespec));
      const auto clock = batch.must("clock", SYS_clock_gettime, {CLOCK_MONOTONIC, where});
      const auto bad = batch.call(SYS_close, {12345});
      must(gadget.run(thread, batch));
      EXPECT_EQ(batch.result(pid), child.pid().value);
      EXPECT_EQ(batch.result(clock), 0);
      EXPECT_GT(batch.read<timespec>(where).tv_sec, 0);
      EXPECT_EQ(batch.result(bad), -EBADF);
    }
    must(gadget.remove(thread));
    const Registers after = must(thread.registers());
    EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
    EXPECT_EQ(must(thread.xstate()), vectors);
    EXPECT_EQ(must(thread.signal_mask()), mask);
    EXPECT_EQ(must(read_maps(child.pid())), maps);
    must(thread.detach());
  }
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, ForwardAndMust) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  Batch batch = gadget.batch();
  const auto opened = batch.must("memfd", SYS_memfd_create, {batch.text("a"), 0});
  const auto sized = batch.must("truncate", SYS_ftruncate, {0, 4096});
  const auto copied = batch.must("dup", SYS_dup, {0});
  const auto closed = batch.call(SYS_close, {0});
  batch.forward(opened, sized, 0);
  batch.forward(opened, copied, 0);
  batch.forward(copied, closed, 0);
  must(gadget.run(thread, batch));
  const long number = batch.result(opened);
  EXPECT_GE(number, 3);
  EXPECT_GT(batch.result(copied), number);
  EXPECT_EQ(batch.result(closed), 0);
  const Fd pidfd = must(pidfd_open(child.pid()));
  const Fd ours = must(pidfd_getfd(pidfd.get(), static_cast<int>(number)));
  EXPECT_EQ(::lseek(ours.get(), 0, SEEK_END), 4096);
  EXPECT_FALSE(pidfd_getfd(pidfd.get(), static_cast<int>(batch.result(copied))));

  Batch failing = gadget.batch();
  const auto first = failing.call(SYS_close, {static_cast<std::uint64_t>(number)});
  failing.must("close what is not open", SYS_close, {static_cast<std::uint64_t>(number)});
  const auto never = failing.call(SYS_getpid);
  const auto outcome = gadget.run(thread, failing);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().what, "close what is not open");
  EXPECT_EQ(outcome.error().code, EBADF);
  EXPECT_EQ(failing.result(first), 0);
  EXPECT_EQ(failing.result(never), -ECANCELED);
  must(gadget.remove(thread));
  must(thread.detach());
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, BatchLargerThanItsAreaIsRefused) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread, 4096));
  Batch batch = gadget.batch();
  int calls = 0;
  while (!batch.full(1, 0)) batch.call(SYS_getpid), ++calls;
  EXPECT_GT(calls, 20);
  must(gadget.run(thread, batch));
  for (int i = 0; i < 100; ++i) batch.call(SYS_getpid);
  const auto outcome = gadget.run(thread, batch);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::invalid);
}

TEST(Remote, NanosleepGoesOnAsIfNothingHadBeen) {
  Child child([](Shared& shared) {
    const std::int64_t begin = now_ns();
    const timespec duration{0, 300'000'000};
    shared.ready = 1;
    const long result = ::syscall(SYS_nanosleep, &duration, nullptr);
    shared.value[0] = now_ns() - begin;
    return static_cast<int>(-result);
  });
  child.await(1);
  Child::await_state(child.pid(), 'S');
  Tracee thread = stop(child.pid());
  const Registers before = must(thread.registers());
  EXPECT_EQ(static_cast<std::int64_t>(before.rax), -516);
  Gadget gadget = must(Gadget::install(thread));
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  must(gadget.remove(thread));
  const Registers after = must(thread.registers());
  EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
  must(thread.detach());
  EXPECT_EQ(child.exit_status(), 0);
  EXPECT_GE(child.shared().value[0], 300'000'000);
  EXPECT_LT(child.shared().value[0], 400'000'000);
}

TEST(Remote, PollAndReadAreRestarted) {
  Child child([](Shared& shared) {
    int pipes[2];
    if (::pipe(pipes) != 0) return 1;
    shared.value[0] = pipes[1];
    pollfd wanted{pipes[0], POLLIN, 0};
    shared.ready = 1;
    if (::poll(&wanted, 1, 10'000) != 1) return 2;
    char text[2];
    if (::read(pipes[0], text, 1) != 1 || text[0] != 'a') return 3;
    shared.ready = 2;
    if (::read(pipes[0], text, 1) != 1 || text[0] != 'b') return 4;
    return 0;
  });
  for (int round = 1; round <= 2; ++round) {
    child.await(round);
    Child::await_state(child.pid(), 'S');
    Tracee thread = stop(child.pid());
    Gadget gadget = must(Gadget::install(thread));
    EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
    must(gadget.remove(thread));
    const Fd pidfd = must(pidfd_open(child.pid()));
    const Fd pipe = must(pidfd_getfd(pidfd.get(), static_cast<int>(child.shared().value[0])));
    must(thread.detach());
    Child::await_state(child.pid(), 'S');
    ASSERT_EQ(::write(pipe.get(), round == 1 ? "a" : "b", 1), 1);
  }
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, GroupStoppedProcessStaysStopped) {
  Child child(compute);
  child.await(1);
  ::kill(child.pid().value, SIGSTOP);
  Child::await_state(child.pid(), 'T');
  Tracee thread = stop(child.pid());
  EXPECT_TRUE(thread.group_stopped());
  Gadget gadget = must(Gadget::install(thread));
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  EXPECT_TRUE(thread.group_stopped());
  must(gadget.remove(thread));
  must(thread.detach());
  Child::await_state(child.pid(), 'T');
  EXPECT_EQ(must(read_stat(child.pid())).state, 'T');
  ::kill(child.pid().value, SIGCONT);
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, StopSignalDuringABatch) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  ::kill(child.pid().value, SIGSTOP);
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  must(gadget.remove(thread));
  must(thread.detach());
  Child::await_state(child.pid(), 'T');
  ::kill(child.pid().value, SIGCONT);
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

std::atomic<int> window_changes{0};
std::atomic<int> traps{0};

TEST(Remote, SignalsOfTheProgramArriveOnceAndDispositionsStay) {
  Child child([](Shared& shared) {
    struct sigaction action {};
    action.sa_handler = [](int) { ++window_changes; };
    ::sigaction(SIGWINCH, &action, nullptr);
    action.sa_handler = SIG_IGN;
    ::sigaction(SIGTRAP, &action, nullptr);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGWINCH);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    const int outcome = compute(shared);
    ::sigprocmask(SIG_UNBLOCK, &blocked, nullptr);
    struct sigaction kept {};
    ::sigaction(SIGTRAP, nullptr, &kept);
    if (kept.sa_handler != SIG_IGN) return 10;
    return outcome != 0 ? outcome : 20 + window_changes;
  });
  child.await(1);
  ::kill(child.pid().value, SIGWINCH);  // pending, blocked by the program
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  must(gadget.remove(thread));
  must(thread.detach());
  child.shared().go = 1;
  const int status = child.exit_status();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 21);
}

TEST(Remote, ASignalThatArrivesWhileStoppingIsDelivered) {
  Child child([](Shared& shared) {
    struct sigaction action {};
    action.sa_handler = [](int) { ++window_changes; };
    ::sigaction(SIGUSR1, &action, nullptr);
    const int outcome = compute(shared);
    return outcome != 0 ? outcome : 20 + window_changes;
  });
  child.await(1);
  Tracee thread = must(Tracee::seize(child.pid()));
  ::kill(child.pid().value, SIGUSR1);
  // The delivery stop comes first, and is passed through by wait_stop.
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child.pid().value), &info, WSTOPPED | WNOWAIT | __WALL), 0);
  must(thread.interrupt());
  must(thread.wait_stop());
  Gadget gadget = must(Gadget::install(thread));
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  must(gadget.remove(thread));
  must(thread.detach());
  child.shared().go = 1;
  const int status = child.exit_status();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 21);
}

TEST(Remote, SixteenThreadsEachRunABatch) {
  constexpr int count = 16;
  Child child([](Shared& shared) {
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i)
      threads.emplace_back([&shared, i] {
        ++shared.ready;
        std::int64_t turns = 0;
        timespec pause{0, 1'000'000};
        while (shared.go == 0) {
          if (i % 2 == 0) ::nanosleep(&pause, nullptr);
          ++turns;
        }
        shared.value[i] = turns;
      });
    ++shared.ready;
    for (auto& thread : threads) thread.join();
    return 0;
  });
  child.await(count);
  const auto tids = must(list_threads(child.pid()));
  ASSERT_EQ(tids.size(), count);
  std::vector<Tracee> threads;
  for (const HostPid tid : tids) threads.push_back(must(Tracee::seize(tid)));
  for (auto& thread : threads) must(thread.interrupt());
  for (auto& thread : threads) must(thread.wait_stop());
  Gadget gadget = must(Gadget::install(threads.front()));
  for (auto& thread : threads) EXPECT_EQ(must(gadget.call(thread, SYS_gettid)), thread.tid().value);
  must(gadget.remove(threads.back()));
  for (auto& thread : threads) must(thread.detach());
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
  for (int i = 1; i < count; ++i) EXPECT_GT(child.shared().value[i], 0);
}

TEST(Remote, CloneAProcessAndAThreadWithChosenIds) {
  // A child in a pid namespace of its own, so that ids can be chosen.
  pid_t inner = 0;
  clone_args arguments{};
  arguments.flags = CLONE_NEWPID;
  arguments.exit_signal = SIGCHLD;
  inner = static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof arguments));
  ASSERT_GE(inner, 0);
  if (inner == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (true) ::pause();
  }
  Child::await_state(HostPid{inner}, 'S');
  {
    Tracee thread = stop(HostPid{inner});
    Gadget gadget = must(Gadget::install(thread));
    const pid_t wanted = 77;
    clone_args process{};
    process.exit_signal = SIGCHLD;
    Tracee forked = must(gadget.clone(thread, {reinterpret_cast<const std::uint8_t*>(&process), sizeof process},
                                      {reinterpret_cast<const std::uint8_t*>(&wanted), sizeof wanted}));
    EXPECT_TRUE(forked.stopped());
    EXPECT_EQ(must(read_status(forked.tid())).ns_pid.back(), 77);
    EXPECT_EQ(must(forked.signal_mask()), must(thread.signal_mask()));
    Gadget theirs = gadget.inherited();
    EXPECT_EQ(must(theirs.call(forked, SYS_getpid)), 77);
    EXPECT_EQ(must(theirs.call(forked, SYS_getppid)), 1);

    const pid_t tid = 78;
    clone_args shared{};
    shared.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    Tracee second = must(theirs.clone(forked, {reinterpret_cast<const std::uint8_t*>(&shared), sizeof shared},
                                      {reinterpret_cast<const std::uint8_t*>(&tid), sizeof tid}));
    EXPECT_EQ(must(theirs.call(second, SYS_gettid)), 78);
    EXPECT_EQ(must(theirs.call(second, SYS_getpid)), 77);
    EXPECT_EQ(must(list_threads(forked.tid())).size(), 2U);

    const auto taken = gadget.clone(thread, {reinterpret_cast<const std::uint8_t*>(&process), sizeof process},
                                    {reinterpret_cast<const std::uint8_t*>(&wanted), sizeof wanted});
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, EEXIST);
    ::kill(forked.tid().value, SIGKILL);
    must(gadget.remove(thread));
  }
  ::kill(inner, SIGKILL);
  ::waitpid(inner, nullptr, __WALL);
}

TEST(Remote, InstallsAndRunsWhereNothingElseIsMapped) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  Batch batch = gadget.batch();
  constexpr std::uint64_t top = 0x7fff'ffff'f000;
  const std::uint64_t end = gadget.begin() + gadget.size();
  // The kernel would write to memory that is gone, on the way back to user mode.
  const auto rseq =
      reinterpret_cast<std::uint64_t>(__builtin_thread_pointer()) + static_cast<std::uint64_t>(__rseq_offset);
  batch.must("unregister rseq", SYS_rseq, {rseq, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG});
  batch.must("unmap below", SYS_munmap, {0, gadget.begin()});
  batch.must("unmap above", SYS_munmap, {end, top - end});
  must(gadget.run(thread, batch));
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  EXPECT_EQ(must(read_maps(child.pid())).size(), 3U);  // code, data, vsyscall
  must(gadget.remove(thread));
  EXPECT_LE(must(read_maps(child.pid())).size(), 1U);
}

TEST(Remote, DeadProcessIsGone) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  ::kill(child.pid().value, SIGKILL);
  const auto outcome = gadget.call(thread, SYS_getpid);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::gone);
}

/// Stays in a restartable sequence until it is aborted or told to go on; `value` is then 1 or 10. Ends when told to.
int stay_in_a_sequence(Shared& shared) {
  auto* area = reinterpret_cast<std::uint64_t*>(static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
  struct alignas(32) Section {
    std::uint32_t version, flags;
    std::uint64_t start, length, abort;
  } section{};
  asm volatile(
      "leaq 1f(%%rip), %%rax\n movq %%rax, 8(%0)\n"
      "leaq 2f(%%rip), %%rcx\n subq %%rax, %%rcx\n movq %%rcx, 16(%0)\n"
      "leaq 3f(%%rip), %%rax\n movq %%rax, 24(%0)\n"
      "movl $1, (%2)\n"
      "movq %0, 8(%1)\n"
      "1: pause\n cmpl $0, (%3)\n je 1b\n"
      "2: movl $10, %%eax\n jmp 4f\n"
      ".long 0x53053053\n"
      "3: movl $1, %%eax\n"
      "4: movl %%eax, (%4)\n"
      :
      : "r"(&section), "r"(area), "r"(&shared.ready), "r"(&shared.go), "r"(&shared.value[0])
      : "rax", "rcx", "memory", "cc");
  while (shared.go == 0) std::this_thread::yield();
  return 0;
}

TEST(Remote, ARestartableSequenceIsAborted) {
  int caught = 0;
  for (int round = 0; round < 200 && caught < 5; ++round) {
    Child child(stay_in_a_sequence);
    child.await(1);
    Tracee thread = stop(child.pid());
    const Registers before = must(thread.registers());
    // The kernel itself may have aborted it already, when another process took its processor.
    Gadget gadget = must(Gadget::install(thread));
    must(gadget.call(thread, SYS_getpid));
    must(gadget.remove(thread));
    const Registers after = must(thread.registers());
    if (after.rip != before.rip) ++caught;
    must(thread.detach());
    // Forgotten by the kernel, the sequence would go on until it is told to end, and yield 10.
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (child.shared().value[0] == 0 && std::chrono::steady_clock::now() < patience) std::this_thread::yield();
    child.shared().go = 1;
    EXPECT_EQ(child.exit_status(), 0);
    EXPECT_EQ(child.shared().value[0], 1);
  }
  EXPECT_GE(caught, 1);
}

/// A process that runs batches in `target` until it is killed.
Child tracer_of(HostPid target) {
  return Child([target](Shared& shared) {
    Tracee thread = stop(target);
    Gadget gadget = must(Gadget::install(thread));
    shared.ready = 1;
    while (true) {
      Batch batch = gadget.batch();
      for (int i = 0; i < 10; ++i) batch.call(SYS_getppid);
      must(gadget.run(thread, batch));
      ++shared.value[0];
    }
    return 0;
  });
}

TEST(Remote, ProgramSurvivesTheTracersDeathInABatch) {
  Child child(compute);
  child.await(1);
  for (int round = 0; round < 60; ++round) {
    {
      Child tracer = tracer_of(child.pid());
      tracer.await(1);
      while (tracer.shared().value[0] < 3 + round % 7) std::this_thread::yield();
      // Somewhere within the 20 us of a batch.
      for (int i = 0; i < round * 97; ++i) asm volatile("");
    }
    // Still on its way through the gadget at first; then it is back in its own loop.
    const std::int64_t turns = child.shared().value[0];
    while (child.shared().value[0] < turns + 2)
      ASSERT_EQ(::waitpid(child.pid().value, nullptr, WNOHANG), 0) << "died in round " << round;
    Tracee thread = stop(child.pid());
    EXPECT_EQ(must(thread.signal_mask()), 0U);
    must(thread.detach());
  }
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

/// Keeps a value in the upper half of a vector register, where the old FXSAVE format has no room, and nowhere else.
int keep_in_a_wide_register(Shared& shared) {
  alignas(32) const std::uint64_t in[4] = {1, 2, 0x1234'5678'9abc'def0, 4};
  alignas(32) std::uint64_t out[4] = {};
  asm volatile(
      "vmovdqa (%0), %%ymm7\n"
      "movl $1, (%2)\n"
      "1: incq (%4)\n pause\n cmpl $0, (%3)\n je 1b\n"
      "vmovdqa %%ymm7, (%1)\n vzeroupper\n"
      :
      : "r"(in), "r"(out), "r"(&shared.ready), "r"(&shared.go), "r"(&shared.value[0])
      : "xmm7", "memory", "cc");
  return std::memcmp(in, out, sizeof in) == 0 ? 0 : 1;
}

TEST(Remote, WideRegistersSurviveTheTracersDeath) {
  if (!__builtin_cpu_supports("avx")) GTEST_SKIP() << "this processor has no AVX";
  Child child(keep_in_a_wide_register);
  child.await(1);
  for (int round = 0; round < 20; ++round) {
    {
      Child tracer = tracer_of(child.pid());
      tracer.await(1);
      while (tracer.shared().value[0] < 3 + round % 7) std::this_thread::yield();
    }
    const std::int64_t turns = child.shared().value[0];
    while (child.shared().value[0] < turns + 2)
      ASSERT_EQ(::waitpid(child.pid().value, nullptr, WNOHANG), 0) << "died in round " << round;
  }
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, ABlockedReadSurvivesTheTracersDeath) {
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  Child child([&](Shared& shared) {
    shared.ready = 1;
    char text = 0;
    if (::read(pipes[0], &text, 1) != 1) return 1;
    return text == 'x' ? 0 : 2;
  });
  child.await(1);
  for (int round = 0; round < 20; ++round) {
    Child::await_state(child.pid(), 'S');
    Child tracer = tracer_of(child.pid());
    tracer.await(1);
    while (tracer.shared().value[0] < 3 + round % 7) std::this_thread::yield();
  }
  ASSERT_EQ(::write(pipes[1], "x", 1), 1);
  EXPECT_EQ(child.exit_status(), 0);
  ::close(pipes[0]);
  ::close(pipes[1]);
}

TEST(Remote, ABatchThatBlocksEndsInATimeout) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  const Registers before = must(thread.registers());
  Gadget gadget = must(Gadget::install(thread));
  const auto outcome = gadget.call(thread, SYS_pause);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::timeout);
  EXPECT_EQ(must(gadget.call(thread, SYS_getpid)), child.pid().value);
  must(gadget.remove(thread));
  const Registers after = must(thread.registers());
  EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
  must(thread.detach());
  child.shared().go = 1;
  EXPECT_EQ(child.exit_status(), 0);
}

TEST(Remote, CostOfABatch) {
  Child child(compute);
  child.await(1);
  Tracee thread = stop(child.pid());
  Gadget gadget = must(Gadget::install(thread));
  std::vector<std::int64_t> costs;
  for (int i = 0; i < 300; ++i) {
    Batch batch = gadget.batch();
    batch.call(SYS_getppid);
    const std::int64_t begin = now_ns();
    must(gadget.run(thread, batch));
    costs.push_back(now_ns() - begin);
  }
  std::sort(costs.begin(), costs.end());
  RecordProperty("median_us", static_cast<int>(costs[costs.size() / 2] / 1000));
  std::printf("batch of one: min %.1f median %.1f p90 %.1f us\n", costs[0] / 1e3, costs[150] / 1e3, costs[270] / 1e3);
  EXPECT_LT(costs[0], 200'000);
}

}  // namespace
}  // namespace godwit::kernel
