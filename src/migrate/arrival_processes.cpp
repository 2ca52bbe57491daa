#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "migrate/arrival.hpp"

/// The process tree at the destination: stopped stubs with the right numbers, parents, sessions and groups.
namespace godwit::migrate {

namespace {

constexpr auto thread_flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
constexpr pid_t init_pid = 1;

template <typename T>
BytesView view(const T& object) {
  return {reinterpret_cast<const std::uint8_t*>(&object), sizeof object};
}

/// struct kernel_sigaction: handler, flags, restorer, mask.
constexpr std::array<std::uint64_t, 4> default_signal{0, 0, 0, 0};

}  // namespace

Result<void> Arrival::make_process(const wire::Process& wanted) {
  Arriving made{.wanted = wanted};
  if (wanted.parent.value == init_pid) {
    Arriving* leader = wanted.session == wanted.pid ? nullptr : find(wanted.session);
    const bool own_session = wanted.session == wanted.pid || wanted.session.value <= init_pid;
    if (own_session) {
      TRY(make_from_init(wanted, made));
    } else {
      if (leader == nullptr) {
        // The session's leader has ended; one with its number stands in for as long as its members are made.
        Arriving temporary{
            .wanted = {
                .pid = wanted.session, .parent = PodPid{init_pid}, .group = wanted.session, .session = wanted.session}};
        TRY(make_from_init(temporary.wanted, temporary));
        temporaries_[wanted.session.value] = temporary.host.value;
        leader = &processes_.emplace(wanted.session.value, std::move(temporary)).first->second;
      }
      TRY(make_session(*leader));
      if (leader->wanted.parent.value != init_pid)
        return fail(ErrorKind::refused, "process {} has lost its parent but stays in the session of {}, which has one",
                    wanted.pid.value, wanted.session.value);
      TRY(make_from(*leader, wanted, made, true));
    }
  } else {
    Arriving* parent = find(wanted.parent);
    if (parent == nullptr) return fail(ErrorKind::invalid, "its parent {} is not there", wanted.parent.value);
    if (wanted.session == parent->wanted.session) TRY(make_session(*parent));
    if (wanted.session != wanted.pid && wanted.session != parent->wanted.session && parent->session_made)
      return fail(ErrorKind::refused, "process {} was made before its parent {} began a session of its own",
                  wanted.pid.value, wanted.parent.value);
    TRY(make_from(*parent, wanted, made, false));
  }
  auto& process = processes_.emplace(wanted.pid.value, std::move(made)).first->second;
  if (!wanted.zombie) return {};
  TRY(make_session(process));
  return make_zombie(wanted, process);
}

Result<void> Arrival::make_from_init(const wire::Process& wanted, Arriving& made) {
  made.host = TRY(pod_->stub(wanted.pid)).process;
  auto thread = TRY(kernel::Tracee::seize(made.host));
  TRY(thread.interrupt());
  TRY(thread.wait_stop());
  made.gadget = TRY(kernel::Gadget::install(thread, 256 * KiB, gadget_place_));
  made.threads.push_back({wanted.pid, std::move(thread)});
  auto batch = made.gadget.batch();
  TRY(objects::forget_stub_registrations(made.threads.front().tracee, batch));
  TRY(made.hand().run(batch));
  made.memory = TRY(DestinationMemory::empty(made.host, wanted.pid, made.hand()));
  return {};
}

Result<void> Arrival::make_from(Arriving& parent, const wire::Process& wanted, Arriving& made, bool sibling) {
  clone_args arguments{};
  arguments.flags = sibling ? CLONE_PARENT : 0;
  if (!sibling && wanted.shares_files) arguments.flags |= CLONE_FILES;
  if (!sibling && wanted.shares_filesystem) arguments.flags |= CLONE_FS;
  arguments.exit_signal =
      sibling ? 0 : static_cast<std::uint64_t>(wanted.exit_signal == 0 ? SIGCHLD : wanted.exit_signal);
  const pid_t number = wanted.pid.value;
  auto hand = parent.hand();
  auto thread = TRY(hand.gadget.clone(hand.thread, view(arguments), view(number)));
  made.host = thread.tid();
  made.gadget = parent.gadget.inherited();
  made.threads.push_back({wanted.pid, std::move(thread)});
  // What was built ahead for its parent is not in its table.
  if ((arguments.flags & CLONE_FILES) == 0)
    TRY(made.gadget.call(made.threads.front().tracee, SYS_close_range, {builder_ + 1, ~0U, 0}));
  if (wanted.forked_from.value != 0) {
    if (sibling || wanted.forked_from != parent.wanted.pid || !parent.memory)
      return fail(ErrorKind::invalid, "it can't be forked from {}", wanted.forked_from.value);
    made.memory = TRY(DestinationMemory::forked(made.host, wanted.pid, *parent.memory, made.hand()));
  } else {
    made.memory = TRY(DestinationMemory::empty(made.host, wanted.pid, made.hand()));
  }
  return {};
}

Result<void> Arrival::make_session(Arriving& process) {
  if (process.ended || process.session_made || process.wanted.session != process.wanted.pid) return {};
  const long made = TRY(process.gadget.call(process.threads.front().tracee, SYS_setsid));
  if (made < 0) {
    errno = static_cast<int>(-made);
    return fail_errno("begin session {}", process.wanted.pid.value);
  }
  process.session_made = true;
  return {};
}

Result<void> Arrival::make_groups() {
  for (auto pid : order_) TRY(make_session(processes_.at(pid.value)));
  std::vector<std::pair<Arriving*, pid_t>> helpers;
  const auto join = [](Arriving& process, pid_t group) -> Result<void> {
    const long joined =
        TRY(process.gadget.call(process.threads.front().tracee, SYS_setpgid, {0, static_cast<std::uint64_t>(group)}));
    if (joined == 0) return {};
    errno = static_cast<int>(-joined);
    return fail_errno("put process {} into group {}", process.wanted.pid.value, group);
  };
  for (const bool leaders : {true, false}) {
    for (auto pid : order_) {
      Arriving& process = processes_.at(pid.value);
      const auto group = process.wanted.group.value;
      if (process.ended || process.wanted.session == pid || group <= init_pid || leaders != (group == pid.value))
        continue;
      if (!leaders && find(PodPid{group}) == nullptr) {
        // The group's leader has ended; one with its number makes the group.
        clone_args arguments{};
        const pid_t number = group;
        auto helper = TRY(process.gadget.clone(process.threads.front().tracee, view(arguments), view(number)));
        const long made = TRY(process.gadget.call(helper, SYS_setpgid, {0, 0}));
        if (made < 0) return fail(ErrorKind::failed, "make group {}", group);
        Arriving stand_in{.wanted = {.pid = PodPid{group}, .parent = pid, .group = PodPid{group}},
                          .host = helper.tid(),
                          .gadget = process.gadget};
        stand_in.threads.push_back({PodPid{group}, std::move(helper)});
        auto& placed = processes_.emplace(group, std::move(stand_in)).first->second;
        helpers.emplace_back(&placed, group);
      }
      TRY(join(process, leaders ? 0 : group));
    }
  }
  for (auto& [helper, group] : helpers) TRY(end_process(*helper));
  for (const auto& [pod, host] : std::exchange(temporaries_, {}))
    if (Arriving* temporary = find(PodPid{pod})) TRY(end_process(*temporary));
  return {};
}

/// Threads that are no longer wanted. While the memory is still there in which something of theirs is registered.
void Arrival::end_threads(Arriving& process) {
  const auto& wanted = process.wanted.threads;
  // The thread the process was made with is its leader, living or not: it goes last.
  for (std::size_t i = 1; i < process.threads.size();) {
    if (std::ranges::find(wanted, process.threads[i].pod) != wanted.end()) {
      ++i;
      continue;
    }
    objects::end_thread(process.gadget, process.threads[i].tracee, process.threads[i].told);
    process.threads.erase(process.threads.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

Result<void> Arrival::make_threads(Arriving& process) {
  for (const auto tid : process.wanted.threads) {
    if (std::ranges::any_of(process.threads, [&](const ArrivingThread& thread) { return thread.pod == tid; })) continue;
    clone_args arguments{};
    arguments.flags = thread_flags;
    const pid_t number = tid.value;
    auto thread = process.gadget.clone(process.threads.front().tracee, view(arguments), view(number));
    if (!thread) return std::unexpected(std::move(thread).error().within(fmt::format("make thread {}", tid.value)));
    process.threads.push_back({tid, std::move(*thread)});
  }
  return {};
}

Result<void> Arrival::make_zombie(const wire::Process& wanted, Arriving& process) {
  auto& thread = process.threads.front().tracee;
  process.memory.reset();
  auto naming = process.gadget.batch();
  naming.call(SYS_prctl, {PR_SET_NAME, naming.text(wanted.name)});
  TRY(process.hand().run(naming));
  if (WIFSIGNALED(wanted.exit_code)) {
    const int signal = WTERMSIG(wanted.exit_code);
    auto batch = process.gadget.batch();
    if (signal != SIGKILL)
      batch.call(SYS_rt_sigaction, {static_cast<std::uint64_t>(signal), batch.value(default_signal), 0, 8});
    constexpr std::array<std::uint64_t, 2> no_core{0, 0};
    batch.call(SYS_setrlimit, {RLIMIT_CORE, batch.value(no_core)});
    TRY(process.hand().run(batch));
    TRY(thread.set_signal_mask(0));
    const Fd pidfd = TRY(kernel::pidfd_open(process.host));
    TRY(kernel::pidfd_send_signal(pidfd.get(), signal));
    if (signal != SIGKILL) {
      TRY(thread.resume());
      TRY(thread.wait());
      TRY(thread.resume(signal));
    }
    (void)thread.wait();
  } else {
    constexpr std::uint64_t nothing_blocked = 0;
    auto batch = process.gadget.batch();
    batch.call(SYS_rt_sigprocmask, {SIG_SETMASK, batch.value(nothing_blocked), 0, sizeof nothing_blocked});
    batch.call(SYS_exit_group, {static_cast<std::uint64_t>(WEXITSTATUS(wanted.exit_code))});
    // It never returns: that it is gone is its success.
    (void)process.hand().run(batch);
  }
  process.threads.clear();
  process.ended = true;
  return {};
}

Result<void> Arrival::end_process(Arriving& process) {
  const PodPid pid = process.wanted.pid;
  if (!process.ended) {
    const Fd pidfd = TRY(kernel::pidfd_open(process.host));
    TRY(kernel::pidfd_send_signal(pidfd.get(), SIGKILL));
    // A leader can be waited for only after all others.
    for (auto thread = process.threads.rbegin(); thread != process.threads.rend(); ++thread)
      (void)thread->tracee.wait();
  }
  descriptors_->forget_installed(pid);
  Arriving* parent = find(process.wanted.parent);
  if (parent != nullptr && !parent->ended && !parent->threads.empty())
    TRY(parent->gadget.call(parent->threads.front().tracee, SYS_wait4,
                            {static_cast<std::uint64_t>(pid.value), 0, __WALL, 0}));
  processes_.erase(pid.value);
  return {};
}

}  // namespace godwit::migrate
