#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>

#include "kernel/remote.hpp"
#include "kernel/tracee.hpp"
#include "object_fixture.hpp"
#include "objects/clocks.hpp"

namespace godwit::objects::testing {
namespace {

constexpr int file_number = 200, signal_number = 201, epoll_number = 202;
constexpr std::uint64_t data = 0x1234;

/// A process that has descriptors under fixed numbers and, when told, checks them by itself.
class Program {
 public:
  /// `prepare` puts the descriptors in place in the child; it exits with what `check` returns.
  template <typename Prepare, typename Check>
  Program(Prepare prepare, Check check) {
    int down[2], up[2];
    EXPECT_EQ(::pipe2(down, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(up, O_CLOEXEC), 0);
    Fd told(down[0]), ready(up[1]);
    tell_ = Fd(down[1]);
    const Fd wait(up[0]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      prepare();
      char byte = 0;
      if (::write(ready.get(), &byte, 1) != 1 || ::read(told.get(), &byte, 1) != 1) ::_exit(99);
      ::_exit(check());
    }
    char byte = 0;
    EXPECT_EQ(::read(wait.get(), &byte, 1), 1);
  }
  ~Program() { end(); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  int result() {
    EXPECT_EQ(::write(tell_.get(), "x", 1), 1);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// A duplicate of one of its descriptors.
  [[nodiscard]] Fd take(int number) const {
    const Fd process{static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0))};
    return Fd{static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0))};
  }

 private:
  pid_t pid_ = -1;
  Fd tell_;
};

struct flock lock_on(std::int64_t start, std::int64_t length, short type) {
  struct flock range {};
  range.l_type = type;
  range.l_start = start;
  range.l_len = length;
  return range;
}

TEST(Attach, RecordLocksAndWatchedSignalsAreTheProcessesOwn) {
  const std::string path = "/var/tmp/godwit-attach-" + std::to_string(::getpid());
  Program before(
      [&] {
        const int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
        ::dup3(file, file_number, 0);
        ::close(file);
        auto range = lock_on(10, 20, F_WRLCK);
        ::fcntl(file_number, F_SETLK, &range);
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR1);
        ::dup3(::signalfd(-1, &mask, 0), signal_number, 0);
        ::dup3(::epoll_create1(0), epoll_number, 0);
        struct epoll_event event {};
        event.events = EPOLLIN;
        event.data.u64 = data;
        ::epoll_ctl(epoll_number, EPOLL_CTL_ADD, signal_number, &event);
      },
      [] { return 0; });
  TestSource source;
  std::vector<Fd> duplicates;
  for (const int number : {file_number, signal_number, epoll_number}) {
    duplicates.push_back(before.take(number));
    const ObjectId id = source.add(duplicates.back().get());
    source.all[id].holders = {{.process = {before.pid()}, .number = number}};
  }
  auto images = capture_all(source);
  const pid_t old = before.pid();
  source.all.clear();
  duplicates.clear();
  before.end();

  TestDestination destination;
  build_all(images, destination);
  Program after(
      [&] {
        ::dup3(destination.built(0), file_number, 0);
        ::dup3(destination.built(1), signal_number, 0);
        ::dup3(destination.built(2), epoll_number, 0);
      },
      [] {
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR1);
        ::sigprocmask(SIG_BLOCK, &mask, nullptr);
        ::raise(SIGUSR1);
        struct epoll_event event {};
        if (::epoll_wait(epoll_number, &event, 1, 1000) != 1) return 1;
        if (event.data.u64 != data) return 2;
        event.events = EPOLLIN;
        return ::epoll_ctl(epoll_number, EPOLL_CTL_MOD, signal_number, &event) == 0 ? 0 : 3;
      });
  auto thread = kernel::Tracee::seize(HostPid{after.pid()}).value();
  ASSERT_TRUE(thread.interrupt());
  ASSERT_TRUE(thread.wait_stop());
  auto gadget = kernel::Gadget::install(thread).value();
  auto batch = gadget.batch();
  // The pod's pid is the same as before in a real move; here the holder's name stays and its process is another.
  for (const auto& image : images)
    for (const auto& holder : image.holders) {
      EXPECT_EQ(holder.process.value, old);
      const auto attached = kind_named(image.kind)->attach(image.state, holder, batch, destination);
      ASSERT_TRUE(attached) << attached.error().message();
    }
  EXPECT_EQ(batch.size(), 2u);
  const auto ran = gadget.run(thread, batch);
  ASSERT_TRUE(ran) << ran.error().message();
  ASSERT_TRUE(gadget.remove(thread));
  ASSERT_TRUE(thread.detach());

  const Fd file{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  auto asked = lock_on(0, 0, F_WRLCK);
  ASSERT_EQ(::fcntl(file.get(), F_GETLK, &asked), 0);
  EXPECT_EQ(asked.l_pid, after.pid());
  EXPECT_EQ(asked.l_start, 10);
  EXPECT_EQ(asked.l_len, 20);
  EXPECT_EQ(after.result(), 0);
  std::filesystem::remove(path);
}

/// A process in a time namespace whose CLOCK_MONOTONIC is ahead by so much.
pid_t fork_ahead(int seconds) {
  const pid_t helper = ::fork();
  if (helper != 0) return helper;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::unshare(CLONE_NEWTIME) < 0) ::_exit(1);
  {
    const Fd offsets{::open("/proc/self/timens_offsets", O_WRONLY)};
    const std::string text = "monotonic " + std::to_string(seconds) + " 0\n";
    if (::write(offsets.get(), text.data(), text.size()) < 0) ::_exit(2);
    // What unshare makes is for children; a process enters it itself like this.
    const Fd future{::open("/proc/self/ns/time_for_children", O_RDONLY)};
    if (::setns(future.get(), CLONE_NEWTIME) < 0) ::_exit(3);
  }
  for (;;) ::pause();
}

class InNamespaces : public TestDestination {
 public:
  std::optional<HostPid> host_pid(PodPid) const override { return process; }
  std::optional<HostPid> process;
};

TEST(Timerfd, AbsoluteTimesFollowThePodsClock) {
  const pid_t there = fork_ahead(5000);
  ASSERT_GT(there, 0);
  // Until its clock is the other one.
  while (true) {
    const auto offset = clock_offset(HostPid{there}, CLOCK_MONOTONIC);
    ASSERT_TRUE(offset) << offset.error().message();
    if (*offset == 5000'000'000'000) break;
    ASSERT_EQ(::waitpid(there, nullptr, WNOHANG), 0);
    ::usleep(200);
  }
  const Fd fd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)};
  struct itimerspec setting {};
  setting.it_value.tv_sec = clock_now(CLOCK_MONOTONIC) / 1'000'000'000 + 6000;
  ASSERT_EQ(::timerfd_settime(fd.get(), TFD_TIMER_ABSTIME, &setting, nullptr), 0);
  TestSource source;
  source.add(fd.get());
  const auto images = capture_all(source);
  // There the pod's clock reads what this node's does plus 5000 s: 1000 s are left.
  InNamespaces destination;
  destination.process = HostPid{there};
  build_all(images, destination);
  struct itimerspec left {};
  ASSERT_EQ(::timerfd_gettime(destination.built(0), &left), 0);
  EXPECT_NEAR(static_cast<double>(left.it_value.tv_sec), 1000, 2);
  ::kill(there, SIGKILL);
  ::waitpid(there, nullptr, 0);
}

}  // namespace
}  // namespace godwit::objects::testing
