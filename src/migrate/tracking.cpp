#include "migrate/tracking.hpp"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <functional>

#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "migrate/freeze.hpp"
#include "objects/interrupted.hpp"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace godwit::migrate {

namespace {

constexpr long restart_block = -516;  // the kernel's ERESTART_RESTARTBLOCK

/// A vfork parent stops only when its child is through. It stands still until then anyway, and once asked it can't be
/// let go before it has stopped.
constexpr auto stop_limit = std::chrono::seconds(5);

/// Stops one thread, does `work` with it, and lets it go on so that it can't tell. Returns how long it stood still
/// (us).
Result<std::uint64_t> borrow_thread(HostPid init, ThreadIds process, const objects::PodClock& clock,
                                    kernel::Gadget& gadget, bool leave_gadget,
                                    const std::function<Result<void>(kernel::Tracee&)>& work) {
  const auto threads = TRY(kernel::list_threads(process.host));
  objects::SleepClock sleep_clock(clock);
  for (std::size_t i = 0; i < threads.size(); ++i) {
    const bool last = i + 1 == threads.size();
    auto mark = sleep_clock.mark(threads[i]);
    auto thread = kernel::Tracee::seize(threads[i]);
    if (!mark || !thread) {
      if (last) return std::unexpected(!thread ? thread.error() : mark.error());
      continue;
    }
    if (!is_of(init, process.pod, threads[i])) {
      let_go(*thread);
      continue;
    }
    const auto began = now_ns();
    TRY(thread->interrupt());
    auto stopped = thread->wait_stop(stop_limit);
    if (!stopped) {
      if (last) return std::unexpected(stopped.error());
      continue;
    }
    auto registers = TRY(thread->registers());
    // A relative sleep is the hardest to take up again: rather take a thread that isn't in one.
    if (static_cast<long>(registers.rax) == restart_block && !last) {
      TRY(thread->detach());
      continue;
    }
    TRY(thread->leave_restartable_sequence());
    registers = TRY(thread->registers());
    const auto interrupted = TRY(objects::describe(*thread, registers, *mark, clock));
    auto done = work(*thread);
    std::optional<objects::Loan> loan;
    if (gadget) {
      auto armed = objects::rearm(gadget, *thread, interrupted, registers, clock);
      if (armed) registers = armed->registers;
      if (armed) loan = std::move(armed->loan);
      if (!leave_gadget) done = gadget.remove(*thread);
      TRY(thread->set_registers(registers));
    }
    TRY(thread->detach());
    const auto pause = static_cast<std::uint64_t>(now_ns() - began) / 1000;
    if (loan) TRY(objects::give_back(threads[i], *loan));
    if (!done) return std::unexpected(done.error());
    return pause;
  }
  return fail(ErrorKind::gone, "process {} has no thread left", process.pod.value);
}

Result<Fd> make_userfaultfd(kernel::Gadget& gadget, kernel::Tracee& helper) {
  long number = TRY(gadget.call(helper, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}));
  // A process without CAP_SYS_PTRACE may only have this kind; write-protection sees the kernel's own writes with it
  // too.
  if (number == -EPERM)
    number = TRY(gadget.call(helper, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY}));
  if (number < 0) {
    errno = static_cast<int>(-number);
    return fail_errno("make a userfaultfd in thread {}", helper.tid().value);
  }
  const Fd pidfd = TRY(kernel::pidfd_open(helper.tid(), true));
  return kernel::pidfd_getfd(pidfd.get(), static_cast<int>(number));
}

}  // namespace

Result<Tracking> begin_tracking(HostPid init, ThreadIds process, const objects::PodClock& clock) {
  Tracking tracking;
  Fd made;
  const auto work = [&](kernel::Tracee& thread) -> Result<void> {
    tracking.gadget = TRY(kernel::Gadget::install(thread));
    // A child that the process forks from now on has nothing of ours.
    TRY(tracking.gadget.call(thread, SYS_madvise, {tracking.gadget.begin(), tracking.gadget.size(), MADV_DONTFORK}));
    clone_args arguments{};
    arguments.flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    auto helper =
        TRY(tracking.gadget.clone(thread, {reinterpret_cast<const std::uint8_t*>(&arguments), sizeof arguments}, {}));
    auto fd = make_userfaultfd(tracking.gadget, helper);
    // The call never returns: that the thread is gone is its success.
    (void)tracking.gadget.call(helper, SYS_exit, {0});
    made = TRY(std::move(fd));
    return {};
  };
  auto pause = borrow_thread(init, process, clock, tracking.gadget, true, work);
  if (!pause) return std::unexpected(std::move(pause).error());
  tracking.pause_us = *pause;
  tracking.tracker =
      TRY(kernel::Userfaultfd::handshake(std::move(made), UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  return tracking;
}

Result<std::uint64_t> remove_gadget(HostPid init, ThreadIds process, kernel::Gadget& gadget,
                                    const objects::PodClock& clock) {
  return borrow_thread(init, process, clock, gadget, false, [](kernel::Tracee&) -> Result<void> { return {}; });
}

}  // namespace godwit::migrate
