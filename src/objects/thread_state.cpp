#include "objects/thread_state.hpp"

#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>

#include "kernel/capabilities.hpp"
#include "kernel/memory.hpp"
#include "kernel/priority.hpp"
#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

// Newer than the installed headers.
constexpr int ptrace_set_dispatch = 0x4210, ptrace_get_dispatch = 0x4211;
constexpr std::uint64_t prctl_get_tid_address = 40;
constexpr std::uint64_t rseq_unregister = 1;
constexpr std::uint64_t personality_query = 0xffffffff;

struct Dispatch {  // struct ptrace_sud_config
  std::uint64_t mode, selector, offset, length;
};

constexpr std::size_t xsave_header = 512;  // xstate_bv, after the legacy area
constexpr std::size_t before_amx = 2696;   // end of PKRU, the last component below AMX
constexpr std::uint64_t amx_components = 3ULL << 17;

/// Components that a saved area uses.
std::uint64_t components(BytesView xstate) {
  std::uint64_t bits = 0;
  if (xstate.size() >= xsave_header + sizeof bits) std::memcpy(&bits, &xstate[xsave_header], sizeof bits);
  return bits;
}

void cut_xstate(Bytes& xstate) {
  if (xstate.size() > before_amx && components(xstate) < 1ULL << 17) xstate.resize(before_amx);
}

/// The area in the size that this processor's kernel wants.
Result<Bytes> full_xstate(BytesView saved, std::size_t size) {
  if (saved.size() > size)
    return fail(ErrorKind::refused, "the program uses processor state that this node doesn't have ({} bytes of {})",
                saved.size(), size);
  Bytes result(saved.begin(), saved.end());
  result.resize(size);
  return result;
}

template <typename T>
Result<T> ask_ptrace(int request, HostPid tid, const char* what) {
  T answer{};
  if (::ptrace(static_cast<__ptrace_request>(request), tid.value, sizeof answer, &answer) < 0)
    return fail_errno("read {} of thread {}", what, tid.value);
  return answer;
}

Result<void> set_dispatch(HostPid tid, Dispatch dispatch) {
  if (::ptrace(static_cast<__ptrace_request>(ptrace_set_dispatch), tid.value, sizeof dispatch, &dispatch) < 0)
    return fail_errno("set syscall user dispatch of thread {}", tid.value);
  return {};
}

template <typename T>
Result<T> from_bytes(const Bytes& bytes, const char* what) {
  T object;
  if (bytes.size() != sizeof object)
    return fail(ErrorKind::invalid, "{} has {} bytes instead of {}", what, bytes.size(), sizeof object);
  std::memcpy(&object, bytes.data(), sizeof object);
  return object;
}

template <typename T>
Bytes to_bytes(const T& object) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(&object);
  return Bytes(begin, begin + sizeof object);
}

}  // namespace

ThreadSettings settings_of(const kernel::TaskFacts& facts, Scheduling scheduling) {
  constexpr std::uint64_t robust_head_size = 24;  // the only one that set_robust_list takes
  constexpr std::uint32_t autodisarm = 1U << 31;  // SS_AUTODISARM; the mode beside it is only what was asked for
  const kernel::TaskCredentials& from = facts.credentials;
  return {.name = facts.name,
          .stack_pointer = facts.stack_pointer,
          .stack_size = facts.stack_size,
          .stack_flags =
              static_cast<std::int32_t>(facts.stack_flags & autodisarm) | (facts.stack_size == 0 ? SS_DISABLE : 0),
          .robust_list = facts.robust_list,
          .robust_size = robust_head_size,
          .clear_tid = facts.clear_tid,
          .rseq = facts.rseq,
          .rseq_size = facts.rseq_size,
          .rseq_signature = facts.rseq_signature,
          .scheduling = std::move(scheduling),
          .credentials = {.uids = from.uids,
                          .gids = from.gids,
                          .groups = from.groups,
                          .effective = from.effective,
                          .permitted = from.permitted,
                          .inheritable = from.inheritable,
                          .ambient = from.ambient,
                          .bounding = from.bounding,
                          .securebits = from.securebits},
          .timer_slack = facts.timer_slack,
          .personality = facts.personality,
          .parent_death_signal = facts.death_signal,
          .no_new_privileges = facts.no_new_privileges};
}

Result<std::vector<Bytes>> queued_signals(const kernel::Tracee& thread, bool shared) {
  std::vector<Bytes> result;
  for (const siginfo_t& info : TRY(thread.pending_signals(shared))) result.push_back(to_bytes(info));
  return result;
}

Result<void> ThreadCapture::look(kernel::Tracee& thread, const SleepMark& slept, const PodClock& clock,
                                 Scheduling scheduling, const kernel::TaskFacts* facts) {
  const HostPid tid = thread.tid();
  TRY(thread.leave_restartable_sequence());
  const auto registers = TRY(thread.registers());
  if (registers.cs != 0x33)
    return fail(ErrorKind::refused, "thread {} ({}) runs 32-bit code", tid.value, state_.tid.value);
  const auto dispatch = TRY(ask_ptrace<Dispatch>(ptrace_get_dispatch, tid, "syscall user dispatch"));
  if (dispatch.mode != 0) {
    state_.dispatch = to_bytes(dispatch);
    TRY(set_dispatch(tid, {}));
  }
  state_.interrupted = TRY(describe(thread, registers, slept, clock));
  state_.registers = to_bytes(registers);
  state_.xstate = TRY(thread.xstate());
  if ((components(state_.xstate) & amx_components) != 0)
    return fail(ErrorKind::refused, "thread {} ({}) has AMX tiles in use", tid.value, state_.tid.value);
  cut_xstate(state_.xstate);
  state_.mask = TRY(thread.signal_mask());
  if (facts == nullptr || facts->signals) state_.pending = TRY(queued_signals(thread, false));
  if (facts != nullptr) {
    state_.settings = settings_of(*facts, std::move(scheduling));
    complete_ = true;
    return {};
  }
  const auto rseq = TRY(thread.rseq());
  auto& settings = state_.settings.emplace();
  settings.scheduling = std::move(scheduling);
  settings.rseq = rseq.address;
  settings.rseq_size = rseq.size;
  settings.rseq_signature = rseq.signature;
  return {};
}

void ThreadCapture::ask(kernel::Batch& batch) {
  name_ = batch.space(16);
  stack_ = batch.space(sizeof(stack_t));
  clear_tid_ = batch.space(8);
  robust_ = batch.space(16);
  death_signal_ = batch.space(sizeof(int));
  name_call_ = batch.call(SYS_prctl, {PR_GET_NAME, name_});
  stack_call_ = batch.call(SYS_sigaltstack, {0, stack_});
  clear_tid_call_ = batch.call(SYS_prctl, {prctl_get_tid_address, clear_tid_});
  robust_call_ = batch.call(SYS_get_robust_list, {0, robust_, robust_ + 8});
  slack_ = batch.call(SYS_prctl, {PR_GET_TIMERSLACK});
  personality_ = batch.call(SYS_personality, {personality_query});
  death_signal_call_ = batch.call(SYS_prctl, {PR_GET_PDEATHSIG, death_signal_});
  no_new_privileges_ = batch.call(SYS_prctl, {PR_GET_NO_NEW_PRIVS});
  credentials_.ask(batch, own_sets_);
}

Result<ThreadState> ThreadCapture::take(const kernel::Batch& batch, HostPid tid) {
  for (const auto call : {name_call_, stack_call_, clear_tid_call_, robust_call_, slack_, personality_,
                          death_signal_call_, no_new_privileges_})
    if (batch.result(call) < 0) {
      errno = static_cast<int>(-batch.result(call));
      return fail_errno("read the state of thread {}", tid.value);
    }
  if (!state_.settings) return fail(ErrorKind::failed, "thread {} is taken before it was looked at", tid.value);
  ThreadSettings& settings = *state_.settings;
  const auto name = batch.read<std::array<char, 16>>(name_);
  settings.name.assign(name.begin(), std::ranges::find(name, '\0'));
  const auto stack = batch.read<stack_t>(stack_);
  settings.stack_pointer = reinterpret_cast<std::uint64_t>(stack.ss_sp);
  settings.stack_size = stack.ss_size;
  settings.stack_flags = stack.ss_flags & ~SS_ONSTACK;
  settings.clear_tid = batch.read<std::uint64_t>(clear_tid_);
  settings.robust_list = batch.read<std::uint64_t>(robust_);
  settings.robust_size = batch.read<std::uint64_t>(robust_ + 8);
  settings.timer_slack = static_cast<std::uint64_t>(batch.result(slack_));
  settings.personality = static_cast<std::uint64_t>(batch.result(personality_));
  settings.parent_death_signal = batch.read<int>(death_signal_);
  settings.no_new_privileges = batch.result(no_new_privileges_) == 1;
  settings.credentials = TRY(credentials_.take(batch, tid));
  return state_;
}

Result<void> ThreadCapture::rearm(kernel::Gadget& gadget, kernel::Tracee& thread, const PodClock& clock) {
  final_.registers = TRY(from_bytes<kernel::Registers>(state_.registers, "a register set"));
  TRY(thread.set_signal_mask(~0ULL));
  final_ = TRY(objects::rearm(gadget, thread, state_.interrupted, final_.registers, clock));
  return {};
}

Result<void> ThreadCapture::put_back(kernel::Tracee& thread) {
  TRY(thread.set_registers(final_.registers));
  TRY(thread.set_signal_mask(state_.mask));
  if (!state_.dispatch.empty()) TRY(set_dispatch(thread.tid(), TRY(from_bytes<Dispatch>(state_.dispatch, "dispatch"))));
  return {};
}

namespace {

Result<void> take_back(HostPid tid, Rearmed& call) {
  const auto loan = std::exchange(call.loan, std::nullopt);
  return loan ? give_back(tid, *loan) : Result<void>{};
}

void tell_settings(kernel::Batch& batch, PodPid tid, const ThreadSettings& settings) {
  const auto must = [&](const char* what, long number, std::array<std::uint64_t, 6> arguments) {
    batch.must(fmt::format("{} of thread {}", what, tid.value), number, arguments);
  };
  must("name", SYS_prctl, {PR_SET_NAME, batch.text(settings.name)});
  batch.call(SYS_set_tid_address, {settings.clear_tid});
  if (settings.robust_size != 0) must("robust list", SYS_set_robust_list, {settings.robust_list, settings.robust_size});
  must("timer slack", SYS_prctl, {PR_SET_TIMERSLACK, settings.timer_slack});
  must("personality", SYS_personality, {settings.personality});
  stack_t stack{};
  stack.ss_sp = reinterpret_cast<void*>(settings.stack_pointer);
  stack.ss_size = settings.stack_size;
  stack.ss_flags = settings.stack_flags;
  must("alternate stack", SYS_sigaltstack, {batch.value(stack), 0});
  if (settings.rseq != 0) must("rseq", SYS_rseq, {settings.rseq, settings.rseq_size, 0, settings.rseq_signature});
}

Result<void> give_credentials(kernel::Batch& batch, HostPid tid, const ThreadSettings& settings) {
  restore_credentials(batch, settings.credentials, TRY(kernel::permitted_capabilities(tid)));
  if (settings.no_new_privileges) batch.must("no new privileges", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1});
  batch.must("parent-death signal", SYS_prctl,
             {PR_SET_PDEATHSIG, static_cast<std::uint64_t>(settings.parent_death_signal)});
  return {};
}

}  // namespace

void ThreadRestore::tell(kernel::Batch& batch) {
  tell_settings(batch, state_.tid, *state_.settings);
}

Result<void> ThreadRestore::credentials(kernel::Batch& batch, HostPid tid) {
  return give_credentials(batch, tid, *state_.settings);
}

Result<void> apply_settings(kernel::Batch& batch, kernel::Tracee& thread, PodPid tid, const ThreadSettings& settings) {
  constexpr std::uint64_t rseq_section = 8;  // rseq_cs in struct rseq
  // The memory is a copy taken while the program ran: a sequence that it names may not be the one that is described
  // where it points to, which would be fatal. The kernel clears this word itself as soon as the thread is preempted.
  // /proc/PID/mem doesn't wait for a page that hasn't come: there is no such word yet then, and it may never come.
  const std::uint64_t none = 0;
  if (settings.rseq != 0)
    if (const auto memory = kernel::MemoryFile::open(thread.tid()))
      (void)memory->write(settings.rseq + rseq_section, &none, sizeof none);
  tell_settings(batch, tid, settings);
  TRY(give_credentials(batch, thread.tid(), settings));
  return set_scheduling(thread.tid(), settings.scheduling);
}

void end_thread(kernel::Gadget& gadget, kernel::Tracee& thread, const std::optional<ThreadSettings>& settings) {
  auto batch = gadget.batch();
  if (settings && settings->rseq != 0)
    batch.call(SYS_rseq, {settings->rseq, settings->rseq_size, rseq_unregister, settings->rseq_signature});
  batch.call(SYS_set_robust_list, {0, 24});
  batch.call(SYS_set_tid_address, {0});
  batch.call(SYS_exit, {0});
  // It never returns: that it is gone is its success.
  (void)gadget.run(thread, batch);
}

Result<std::size_t> requeue_signals(kernel::Batch& batch, const std::vector<Bytes>& signals, std::size_t from,
                                    PodPid process, std::optional<PodPid> thread, const Timers& timers) {
  const auto group = static_cast<std::uint64_t>(process.value);
  for (; from < signals.size() && !batch.full(2, 512); ++from) {
    const auto info = TRY(from_bytes<siginfo_t>(signals[from], "a queued signal"));
    if (comes_again(timers, info)) continue;
    const auto number = static_cast<std::uint64_t>(info.si_signo);
    const RemoteAddress where = batch.data(signals[from]);
    if (thread)
      batch.must("queue a signal", SYS_rt_tgsigqueueinfo,
                 {group, static_cast<std::uint64_t>(thread->value), number, where});
    else
      batch.must("queue a signal", SYS_rt_sigqueueinfo, {group, number, where});
  }
  return from;
}

Result<void> ThreadRestore::rearm(kernel::Gadget& gadget, kernel::Tracee& thread, const PodClock& clock) {
  ThreadRestore* const self = this;
  kernel::Tracee* const tracee = &thread;
  return rearm(gadget, {&self, 1}, {&tracee, 1}, clock);
}

Result<void> ThreadRestore::rearm(kernel::Gadget& gadget, std::span<ThreadRestore* const> restores,
                                  std::span<kernel::Tracee* const> threads, const PodClock& clock) {
  std::vector<Rearming> all;
  for (std::size_t i = 0; i < restores.size(); ++i) {
    const ThreadState& state = restores[i]->state_;
    all.push_back({threads[i], &state.interrupted,
                   TRY(from_bytes<kernel::Registers>(state.registers, "a register set")), restores[i]->parked_});
    if (state.interrupted.how == "block") TRY(threads[i]->set_signal_mask(~0ULL));
  }
  TRY(objects::rearm(gadget, all, clock));
  for (std::size_t i = 0; i < restores.size(); ++i) {
    restores[i]->final_ = {all[i].registers, std::move(all[i].loan)};
    restores[i]->armed_ = true;
    restores[i]->parked_ = false;
  }
  return {};
}

Result<void> ThreadRestore::settle(kernel::Tracee& thread, std::uint64_t timer_slack) {
  if (!armed_) return fail(ErrorKind::failed, "thread {} is settled before it is rearmed", state_.tid.value);
  // The same for every thread of this machine.
  static std::atomic<std::size_t> known{0};
  std::size_t size = known;
  if (size == 0) known = size = TRY(thread.xstate()).size();
  TRY(thread.set_xstate(TRY(full_xstate(state_.xstate, size))));
  TRY(thread.set_registers(final_.registers));
  TRY(thread.set_signal_mask(state_.mask));
  if (!state_.dispatch.empty()) TRY(set_dispatch(thread.tid(), TRY(from_bytes<Dispatch>(state_.dispatch, "dispatch"))));
  const ThreadSettings& settings = *state_.settings;
  TRY(told_ ? set_policy(thread.tid(), settings.scheduling) : set_scheduling(thread.tid(), settings.scheduling));
  // Leaving a real-time class resets it.
  if (settings.timer_slack != 0 && settings.timer_slack != timer_slack)
    return kernel::set_timer_slack(thread.tid(), settings.timer_slack);
  return {};
}

Result<void> ThreadRestore::finish(kernel::Gadget& gadget, kernel::Tracee& thread, const PodClock& clock) {
  TRY(rearm(gadget, thread, clock));
  return settle(thread);
}

Result<void> ThreadCapture::running(HostPid tid) {
  return take_back(tid, final_);
}

Result<void> ThreadRestore::running(HostPid tid) {
  return take_back(tid, final_);
}

Result<bool> same_capability_sets(HostPid process) {
  const auto first = TRY(kernel::read_status(process));
  for (const HostPid tid : TRY(kernel::list_threads(process))) {
    const auto status = kernel::read_status(tid);
    if (!status) continue;  // it has ended meanwhile
    if (status->cap_bounding != first.cap_bounding || status->cap_ambient != first.cap_ambient) return false;
  }
  return true;
}

Result<void> forget_stub_registrations(kernel::Tracee& stub, kernel::Batch& batch) {
  const auto rseq = TRY(stub.rseq());
  if (rseq.address != 0)
    batch.must("unregister rseq", SYS_rseq, {rseq.address, rseq.size, rseq_unregister, rseq.signature});
  batch.call(SYS_set_robust_list, {0, 24});
  batch.call(SYS_set_tid_address, {0});
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  batch.call(SYS_sigaltstack, {batch.value(none), 0});
  return {};
}

}  // namespace godwit::objects
