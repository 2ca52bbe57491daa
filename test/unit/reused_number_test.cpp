#include <gtest/gtest.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <thread>

#include "kernel/memory.hpp"
#include "migrate/destination_memory.hpp"
#include "migrate/freeze.hpp"
#include "migrate/source_memory.hpp"
#include "migrate/tracking.hpp"
#include "migrate/tree.hpp"
#include "objects/interrupted.hpp"
#include "objects/thread_state.hpp"

/// A process ends, is collected, and another one gets its number: nothing of ours may go to that one, or come from it.
namespace godwit::migrate {
namespace {

/// fork(2) with flags of clone3(2), and a number that is free if it isn't 0. The child waits for its end.
pid_t fork_with(std::uint64_t flags, pid_t number, const std::function<void()>& first = {}) {
  clone_args arguments{};
  arguments.flags = flags;
  arguments.exit_signal = SIGCHLD;
  if (number != 0) {
    arguments.set_tid = reinterpret_cast<std::uint64_t>(&number);
    arguments.set_tid_size = 1;
  }
  const auto child = static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof arguments));
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (first) first();
  for (;;) ::pause();
}

void end(pid_t process) {
  ::kill(process, SIGKILL);
  ::waitpid(process, nullptr, __WALL);
}

void await_sleep(pid_t process) {
  while (kernel::read_stat(HostPid{process})->state != 'S') std::this_thread::yield();
}

/// A process with a page at a known place, and the one that has its number afterwards, with another content there.
class ReusedNumber : public ::testing::Test {
 protected:
  static constexpr std::size_t size = 4 * page_size;

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "numbers are chosen by root only";
    page = static_cast<char*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(page, MAP_FAILED);
    begin = reinterpret_cast<std::uint64_t>(page);
    std::memset(page, 'a', size);
    process = fork_with(0, 0);
    ASSERT_GT(process, 0);
    await_sleep(process);
    std::memset(page, 'b', size);
  }
  void TearDown() override {
    if (process > 0) end(process);
    if (page != nullptr) ::munmap(page, size);
  }
  void reuse(const std::function<void()>& first = {}) {
    end(process);
    ASSERT_EQ(fork_with(0, process, first), process) << std::strerror(errno);
    await_sleep(process);
  }
  [[nodiscard]] std::string memory() const {
    std::string text(size, '\0');
    EXPECT_EQ(kernel::read_memory(HostPid{process}, begin, text.data(), size).value_or(0), size);
    return text;
  }
  kernel::Tracee stop() const {
    auto thread = kernel::Tracee::seize(HostPid{process});
    EXPECT_TRUE(thread && thread->interrupt() && thread->wait_stop());
    return std::move(*thread);
  }

  char* page = nullptr;
  std::uint64_t begin = 0;
  pid_t process = 0;
  const std::string others = std::string(size, 'b');
};

TEST_F(ReusedNumber, AnothersMemoryIsNotSent) {
  const auto source = SourceMemory::open(HostPid{process}, PodPid{2});
  ASSERT_TRUE(source);
  std::vector<std::uint8_t> bytes(size);
  const Range range{begin, begin + size};
  ASSERT_EQ(source->read({&range, 1}, bytes.data()), size);
  EXPECT_EQ(bytes.front(), 'a');
  reuse();
  EXPECT_EQ(source->read({&range, 1}, bytes.data()), 0U);
}

TEST_F(ReusedNumber, AnothersLayoutIsNotRead) {
  auto source = SourceMemory::open(HostPid{process}, PodPid{2});
  ASSERT_TRUE(source);
  SourceObjects objects;
  ASSERT_TRUE(source->look(objects, true, 0, 0));
  reuse();
  const auto looked = source->look(objects, true, 0, 0);
  ASSERT_FALSE(looked);
  EXPECT_EQ(looked.error().kind, ErrorKind::gone);
}

TEST_F(ReusedNumber, NothingIsWrittenIntoAnothersMemory) {
  auto thread = stop();
  auto gadget = kernel::Gadget::install(thread);
  ASSERT_TRUE(gadget) << gadget.error().message();
  Hand hand{thread, *gadget};
  auto batch = gadget->batch();
  ASSERT_TRUE(objects::forget_stub_registrations(thread, batch) && gadget->run(thread, batch));
  auto target = DestinationMemory::empty(HostPid{process}, PodPid{2}, hand);
  ASSERT_TRUE(target) << target.error().message();
  const DestinationObjects objects;
  const Layout layout{{.begin = begin, .end = begin + size, .protection = PROT_READ | PROT_WRITE}};
  const auto applied = (*target)->apply(layout, objects, 0, hand, [](const auto&) { return Result<void>(); });
  ASSERT_TRUE(applied) << applied.error().message();
  const std::string first(size, 'x'), again(size, 'y');
  ASSERT_TRUE((*target)->write(begin, first.data(), size));
  ASSERT_TRUE((*target)->write(begin, again.data(), size));
  EXPECT_TRUE(memory() == again);
  ::kill(process, SIGKILL);
  (void)thread.wait();
  reuse();
  EXPECT_FALSE((*target)->write(begin, first.data(), size));
  EXPECT_TRUE(memory() == others);
}

TEST_F(ReusedNumber, NothingIsGivenBackToAnother) {
  int ends[2], foreign[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, foreign), 0);
  const int number = ends[0];
  end(process);
  std::memset(page, 'a', size);
  process = fork_with(0, 0);
  await_sleep(process);
  std::memset(page, 'b', size);
  const auto timeout_of = [](int socket) {
    timeval time{};
    socklen_t length = sizeof time;
    EXPECT_EQ(::getsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, &length), 0);
    return time.tv_sec;
  };
  const auto clock = objects::PodClock::of(HostPid{process});
  ASSERT_TRUE(clock);
  const auto lent = [&](long call, const auto& own) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&own);
    constexpr std::int64_t soon = 3'000'000'000;
    return objects::Interrupted{
        .how = "lent", .number = call, .deadline = clock->now() + soon, .lent = Bytes(bytes, bytes + sizeof own)};
  };
  const auto to_memory = lent(SYS_rt_sigtimedwait, timespec{.tv_sec = 77, .tv_nsec = 0});
  const auto to_socket = lent(SYS_recvfrom, timeval{.tv_sec = 77, .tv_usec = 0});
  std::vector<objects::Loan> loans;
  {
    auto thread = stop();
    auto registers = *thread.registers();
    registers.rdx = begin;
    registers.rdi = static_cast<std::uint64_t>(number);
    kernel::Gadget none;
    for (const auto* call : {&to_memory, &to_socket}) {
      auto armed = objects::rearm(none, thread, *call, registers, *clock);
      ASSERT_TRUE(armed) << armed.error().message();
      ASSERT_TRUE(armed->loan);
      loans.push_back(std::move(*armed->loan));
    }
    EXPECT_NE(memory().front(), 'a');
    EXPECT_LT(timeout_of(number), 10);
    ::kill(process, SIGKILL);
    (void)thread.wait();
  }
  reuse([&] { ::dup2(foreign[0], number); });
  EXPECT_FALSE(objects::give_back(HostPid{process}, loans.front()));
  EXPECT_TRUE(memory() == others);
  EXPECT_TRUE(objects::give_back(HostPid{process}, loans.back()));
  EXPECT_EQ(timeout_of(number), 77);
  EXPECT_EQ(timeout_of(foreign[0]), 0);
  for (const int fd : {ends[0], ends[1], foreign[0], foreign[1]}) ::close(fd);
}

/// An init in a pid namespace of its own, with one child, and processes that are no part of it.
class ForeignNumber : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "namespaces are made by root only";
    init = make_pod();
    other_init = make_pod();
    outside = fork_with(0, 0);
    own = child_of(init);
    other = child_of(other_init);
    await_sleep(outside);
  }
  void TearDown() override {
    for (const pid_t each : {outside, init, other_init})
      if (each > 0) end(each);
  }
  static pid_t make_pod() {
    return fork_with(CLONE_NEWPID, 0, [] { fork_with(0, 0); });
  }
  static pid_t child_of(pid_t parent) {
    for (;;) {
      const auto tree = read_tree(HostPid{parent});
      if (tree && tree->size() == 1 && kernel::read_stat(tree->front().host)->state == 'S')
        return tree->front().host.value;
      std::this_thread::yield();
    }
  }

  pid_t init = 0, other_init = 0, outside = 0, own = 0, other = 0;
  static constexpr PodPid number{2};  ///< the first child's in its namespace
};

TEST_F(ForeignNumber, IsTold) {
  const HostPid pod{init};
  EXPECT_TRUE(is_of(pod, number, HostPid{own}));
  EXPECT_TRUE(is_of(pod, number, HostPid{own}, number));
  EXPECT_FALSE(is_of(pod, PodPid{3}, HostPid{own}));
  EXPECT_FALSE(is_of(pod, number, HostPid{own}, PodPid{3}));
  EXPECT_FALSE(is_of(pod, number, HostPid{other})) << "another pod's, with the same number there";
  EXPECT_FALSE(is_of(pod, PodPid{outside}, HostPid{outside})) << "of no pod";
  // A namespace within the pod's is the pod's.
  const pid_t parent = fork_with(CLONE_NEWPID, 0, [] { fork_with(CLONE_NEWPID, 0); });
  EXPECT_TRUE(is_of(HostPid{parent}, PodPid{1}, HostPid{child_of(parent)}));
  end(parent);
}

TEST_F(ForeignNumber, IsNotFrozen) {
  for (const pid_t foreign : {outside, other}) {
    auto tree = read_tree(HostPid{init});
    ASSERT_TRUE(tree && tree->size() == 1);
    // What the tree has seen has ended since, and this one has its number.
    ProcessIds stale = tree->front();
    stale.host = stale.threads.front().host = HostPid{foreign};
    const Known known{.processes = {stale}, .last_pid = number};
    const FreezeHooks hooks{.last_pid = []() -> Result<PodPid> { return number; },
                            .begin = []() -> Result<void> { return {}; },
                            .asked = [&](HostPid thread) { EXPECT_NE(thread.value, foreign); }};
    std::int64_t stopped_at = 0;
    auto frozen = freeze_all(HostPid{init}, known, hooks, std::chrono::seconds(5), stopped_at);
    ASSERT_TRUE(frozen) << frozen.error().message();
    ASSERT_EQ(frozen->size(), 1U);
    EXPECT_EQ(frozen->front().ids.host.value, own);
    EXPECT_NE(kernel::read_stat(HostPid{foreign})->state, 't');
    thaw_all(*frozen);
  }
}

TEST_F(ForeignNumber, IsNotTracked) {
  for (const pid_t foreign : {outside, other}) {
    const auto before = kernel::read_maps_text(HostPid{foreign});
    const PodPid said = foreign == other ? number : PodPid{foreign};
    const auto tracking = begin_tracking(HostPid{init}, {HostPid{foreign}, said}, {});
    ASSERT_FALSE(tracking);
    EXPECT_EQ(tracking.error().kind, ErrorKind::gone) << tracking.error().message();
    EXPECT_EQ(*kernel::read_maps_text(HostPid{foreign}), *before);
  }
}

}  // namespace
}  // namespace godwit::migrate
