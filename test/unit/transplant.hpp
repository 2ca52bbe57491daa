#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <climits>
#include <csignal>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernel/procfs.hpp"
#include "objects/process_state.hpp"
#include "objects/thread_state.hpp"

/// A process is captured, dies, and is rebuilt from what was captured, under the same ids. Memory and descriptors come
/// along by fork, so that only the state of process and threads has to move.
namespace godwit::test {

/// What the program and the test share, before and after.
struct Shared {
  std::atomic<int> ready{0};  ///< threads that have set themselves up
  std::atomic<int> moved{0};  ///< 1 when the program runs again
  std::atomic<int> failed{0};
  char why[16][256]{};
  /// Sleeps until the program has been moved.
  void wait_moved() {
    while (moved == 0) ::syscall(SYS_futex, &moved, FUTEX_WAIT, 0, nullptr, nullptr, 0);
  }
  void complain(const char* what, long is, long expected) {
    const int slot = failed++;
    if (slot < 16) std::snprintf(why[slot], sizeof why[slot], "%s: is %ld, expected %ld", what, is, expected);
  }
};

struct Captured {
  Bytes process;
  std::vector<Bytes> threads;  ///< leader first
};

class Transplant {
 public:
  /// Forks `program`; it exits with what `program` returns.
  explicit Transplant(const std::function<int(Shared&)>& program) {
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit(program(*shared_));
    }
  }
  ~Transplant() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      for (std::size_t i = stopped_.size(); i-- > 1;) (void)stopped_[i].wait();
      ::waitpid(pid_, nullptr, __WALL);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  Transplant(const Transplant&) = delete;
  Transplant& operator=(const Transplant&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] Shared& shared() { return *shared_; }

  /// Until so many threads are ready and (unless they spin) all are asleep.
  void wait_ready(int threads, bool asleep = true) {
    while (shared_->ready < threads) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        FAIL() << "the program ended early with " << status << ": " << complaints();
      }
      ::usleep(200);
    }
    for (bool all = !asleep; !all;) {
      all = true;
      const auto tids = kernel::list_threads(HostPid{pid_});
      for (const HostPid tid : *tids)
        if (kernel::read_stat(tid)->state != 'S') all = false;
    }
  }

  Result<Captured> capture();
  /// Kills what was captured and rebuilds it.
  Result<void> rebuild(const Captured&);
  /// Both. Leaves the program running.
  Result<void> move() {
    captured_ = TRY(capture());
    TRY(rebuild(captured_));
    shared_->moved = 1;
    ::syscall(SYS_futex, &shared_->moved, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    return {};
  }
  /// After `capture`: lets the original go on.
  Result<void> give_up() {
    const auto clock = TRY(objects::PodClock::of(HostPid{pid_}));
    for (std::size_t i = 0; i < stopped_.size(); ++i) TRY(captures_[i].rearm(gadget_, stopped_[i], clock));
    TRY(gadget_.remove(stopped_.front()));
    for (std::size_t i = 0; i < stopped_.size(); ++i) TRY(captures_[i].put_back(stopped_[i]));
    for (auto& thread : stopped_) TRY(thread.detach());
    for (std::size_t i = 0; i < stopped_.size(); ++i) TRY(captures_[i].running(stopped_[i].tid()));
    stopped_.clear();
    return {};
  }
  /// The process is captured a second time: what has been rebuilt must look like what was.
  Result<Captured> capture_again() { return capture(); }
  [[nodiscard]] const Captured& captured() const { return captured_; }

  /// Waits for the program's end; its exit code, or minus its signal.
  int result() {
    int status = 0;
    if (::waitpid(pid_, &status, __WALL) != pid_) return -1000;
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  [[nodiscard]] std::string complaints() const {
    std::string text;
    for (int i = 0; i < std::min(shared_->failed.load(), 16); ++i) text += std::string(shared_->why[i]) + "\n";
    return text;
  }

 private:
  Result<std::vector<kernel::Tracee>> stop_all();
  Result<void> finish(kernel::Gadget&, std::vector<kernel::Tracee>&, const objects::ProcessState&,
                      const std::vector<objects::ThreadState>&);
  Shared* shared_ = nullptr;
  pid_t pid_ = -1;
  Captured captured_;
  std::vector<kernel::Tracee> stopped_;
  std::vector<objects::ThreadCapture> captures_;
  std::map<pid_t, objects::SleepMark> marks_;
  kernel::Gadget gadget_;
};

inline Result<std::vector<kernel::Tracee>> Transplant::stop_all() {
  const auto clock = TRY(objects::PodClock::of(HostPid{pid_}));
  objects::SleepClock sleep_clock(clock);
  std::vector<kernel::Tracee> threads;
  for (const HostPid tid : TRY(kernel::list_threads(HostPid{pid_}))) {
    marks_[tid.value] = TRY(sleep_clock.mark(tid));
    threads.push_back(TRY(kernel::Tracee::seize(tid)));
  }
  for (auto& thread : threads) TRY(thread.interrupt());
  for (auto& thread : threads) TRY(thread.wait_stop());
  return threads;
}

inline Result<Captured> Transplant::capture() {
  const auto clock = TRY(objects::PodClock::of(HostPid{pid_}));
  std::vector<objects::Scheduling> scheduling;
  for (const HostPid tid : TRY(kernel::list_threads(HostPid{pid_})))
    scheduling.push_back(TRY(objects::scheduling_of(tid)));
  stopped_ = TRY(stop_all());
  objects::ProcessCapture process;
  TRY(process.look(HostPid{pid_}, stopped_.front(), TRY(kernel::read_status(HostPid{pid_}))));
  std::vector<objects::ThreadCapture>& captures = captures_;
  captures.clear();
  for (std::size_t i = 0; i < stopped_.size(); ++i) {
    const HostPid tid = stopped_[i].tid();
    captures.emplace_back(PodPid{TRY(kernel::read_status(tid)).ns_pid.back()}, true);
    TRY(captures.back().look(stopped_[i], marks_[tid.value], clock, scheduling[i]));
  }
  gadget_ = TRY(kernel::Gadget::install(stopped_.front()));
  Captured result;
  for (std::size_t i = 0; i < stopped_.size(); ++i) {
    auto batch = gadget_.batch();
    captures[i].ask(batch);
    if (i == 0) process.ask(batch);
    TRY(gadget_.run(stopped_[i], batch));
    result.threads.push_back(image::pack(TRY(captures[i].take(batch, stopped_[i].tid()))));
    if (i == 0) result.process = image::pack(TRY(process.take(batch, clock)));
  }
  return result;
}

inline Result<void> Transplant::rebuild(const Captured& image) {
  const auto process = TRY(image::unpack<objects::ProcessState>(image.process));
  std::vector<objects::ThreadState> states;
  for (const Bytes& bytes : image.threads) states.push_back(TRY(image::unpack<objects::ThreadState>(bytes)));
  const auto clone = [&](kernel::Tracee& in, std::uint64_t flags, std::vector<pid_t> ids) {
    const clone_args order{.flags = flags};
    return gadget_.clone(in, {reinterpret_cast<const std::uint8_t*>(&order), sizeof order},
                         {reinterpret_cast<const std::uint8_t*>(ids.data()), ids.size() * sizeof(pid_t)});
  };
  // CLONE_PARENT: our child, as the original. It must be gone before its ids can be given again.
  auto between = TRY(clone(stopped_.front(), CLONE_PARENT, {}));
  ::kill(pid_, SIGKILL);
  for (std::size_t i = stopped_.size(); i-- > 0;) (void)stopped_[i].wait();
  while (::waitpid(pid_, nullptr, __WALL) == pid_) {
  }
  stopped_.clear();
  std::vector<kernel::Tracee> threads;
  // Of CLONE_PARENT the new process takes the exit signal of its brother.
  threads.push_back(TRY(clone(between, CLONE_PARENT, {process.pid.value})));
  ::kill(between.tid().value, SIGKILL);
  (void)between.wait();
  constexpr std::uint64_t thread_flags =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  for (std::size_t i = 1; i < states.size(); ++i)
    threads.push_back(TRY(clone(threads.front(), thread_flags, {states[i].tid.value})));
  return finish(gadget_, threads, process, states);
}

inline Result<void> Transplant::finish(kernel::Gadget& gadget, std::vector<kernel::Tracee>& threads,
                                       const objects::ProcessState& process,
                                       const std::vector<objects::ThreadState>& states) {
  const auto clock = TRY(objects::PodClock::of(HostPid{pid_}));
  objects::ProcessRestore restore(process, clock);
  std::vector<objects::ThreadRestore> restores;
  for (const auto& state : states) restores.emplace_back(state);

  auto batch = gadget.batch();
  // Fork has carried these over; a stub of another process has others.
  batch.call(SYS_umask, {0111});
  batch.call(SYS_chdir, {batch.text("/proc")});
  for (std::uint64_t signal = 1; signal <= 64; ++signal) {
    const std::array<std::uint64_t, 4> ignore{1, 0, 0, 0};
    batch.call(SYS_rt_sigaction, {signal, batch.value(ignore), 0, 8});
  }
  const auto& place = process.layout;
  const prctl_mm_map empty{.start_code = place.start_code,
                           .end_code = place.start_code + 1,
                           .start_data = place.start_data,
                           .end_data = place.start_data,
                           .start_brk = place.start_brk,
                           .brk = place.start_brk,
                           .start_stack = place.start_stack,
                           .arg_start = place.arg_end,
                           .arg_end = place.arg_end,
                           .env_start = place.env_end,
                           .env_end = place.env_end,
                           .auxv = nullptr,
                           .auxv_size = 0,
                           .exe_fd = static_cast<__u32>(-1)};
  batch.must("empty the layout", SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, batch.value(empty), sizeof empty});
  TRY(gadget.run(threads.front(), batch));
  for (auto& thread : threads) {
    batch = gadget.batch();
    TRY(objects::forget_stub_registrations(thread, batch));
    TRY(gadget.run(thread, batch));
    TRY(thread.set_signal_mask(0));
  }

  batch = gadget.batch();
  restore.early(batch);
  TRY(gadget.run(threads.front(), batch));
  batch = gadget.batch();
  restore.late(batch, 200);
  TRY(gadget.run(threads.front(), batch));
  TRY(restore.outside(HostPid{pid_}));
  for (std::size_t i = threads.size(); i-- > 0;) {
    batch = gadget.batch();
    restores[i].tell(batch);
    TRY(restores[i].credentials(batch, threads[i].tid()));
    if (i == 0) restore.last(batch);
    TRY(objects::requeue_signals(batch, states[i].pending, 0, process.pid, states[i].tid, process.timers));
    if (i == 0) TRY(objects::requeue_signals(batch, process.pending, 0, process.pid, {}, process.timers));
    TRY(gadget.run(threads[i], batch));
  }
  for (std::size_t i = 0; i < threads.size(); ++i) TRY(restores[i].rearm(gadget, threads[i], clock));
  TRY(gadget.remove(threads.front()));
  for (std::size_t i = 0; i < threads.size(); ++i) TRY(restores[i].settle(threads[i]));
  for (auto& thread : threads) TRY(thread.detach());
  for (const auto& state : states) TRY(restores[&state - states.data()].running(HostPid{state.tid.value}));
  return {};
}

}  // namespace godwit::test
