#include "objects/process_state.hpp"

#include <elf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>

#include "kernel/capabilities.hpp"
#include "objects/thread_state.hpp"

namespace godwit::objects {
namespace {

// Newer than the installed headers, or glibc's own idea of them.
constexpr std::uint64_t prctl_set_deny_write_execute = 65, prctl_get_deny_write_execute = 66, prctl_set_merge = 67,
                        prctl_get_merge = 68, membarrier_get_registrations = 1 << 9, arch_get_components = 0x1022,
                        arch_request_component = 0x1023, amx_component = 18;
constexpr std::size_t signals = 64, limit_count = RLIM_NLIMITS, mask_size = 8;

struct KernelAction {
  std::uint64_t handler, flags, restorer, mask;
};
static_assert(sizeof(prctl_mm_map) == 104);

bool settable(std::size_t signal) {
  return signal != SIGKILL && signal != SIGSTOP;
}

std::string name_of(HostPid process) {
  const auto status = kernel::read_status(process);
  if (!status) return fmt::format("process {}", process.value);
  const int inside = status->ns_tgid.empty() ? process.value : status->ns_tgid.back();
  return fmt::format("process {} ({})", inside, status->name);
}

Result<std::string> path_of(HostPid process, std::string_view name) {
  std::string path = TRY(kernel::read_link(process, name));
  if (path.ends_with(" (deleted)") || path.empty() || path.front() != '/')
    return fail(ErrorKind::refused, "{}: its {} is {}, which can't be opened again", name_of(process), name, path);
  return path;
}

template <typename Number>
Result<Number> number_in(HostPid process, std::string_view file, int base) {
  const std::string text = TRY(kernel::read_file(process, file));
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, base);
  if (end == text.c_str()) return fail(ErrorKind::failed, "malformed /proc/{}/{}", process.value, file);
  return static_cast<Number>(value);
}

/// Lines of /proc/PID/status that Status doesn't have.
std::string status_field(const std::string& status, std::string_view key) {
  for (std::size_t at = 0; at < status.size();) {
    const auto end = std::min(status.find('\n', at), status.size());
    if (status.compare(at, key.size(), key) == 0 && status[at + key.size()] == ':') {
      auto value = status.substr(at + key.size() + 1, end - at - key.size() - 1);
      value.erase(0, std::min(value.find_first_not_of(" \t"), value.size()));
      return value;
    }
    at = end + 1;
  }
  return {};
}

void refuse_program(HostPid process, const std::string& who, std::vector<std::string>& refusals) {
  const auto program = kernel::open_file(process, "exe", O_RDONLY | O_CLOEXEC);
  std::array<unsigned char, EI_NIDENT> header{};
  if (program && ::read(program->get(), header.data(), header.size()) == static_cast<ssize_t>(header.size()) &&
      header[EI_CLASS] != ELFCLASS64)
    refusals.push_back(fmt::format("{}: a 32-bit program", who));
}

}  // namespace

Result<void> preflight_process(HostPid process, std::vector<std::string>& refusals) {
  const std::string who = name_of(process);
  for (const char* name : {"cwd", "root", "exe"})
    if (auto path = path_of(process, name); !path) {
      if (path.error().kind == ErrorKind::refused)
        refusals.push_back(path.error().what);
      else if (path.error().code != ENOENT)  // an exited leader has none
        return std::unexpected(std::move(path).error());
    }
  refuse_program(process, who, refusals);
  for (const HostPid tid : TRY(kernel::list_threads(process))) {
    const auto text = kernel::read_file(tid, "status");
    if (!text) continue;  // it has ended meanwhile
    const std::string thread = fmt::format("{}: thread {}", who, tid.value);
    if (const auto tracer = status_field(*text, "TracerPid"); tracer != "0" && !tracer.empty())
      refusals.push_back(fmt::format("{} is traced by process {} (a debugger)", thread, tracer));
    if (const auto mode = status_field(*text, "Seccomp"); mode != "0" && !mode.empty())
      refusals.push_back(fmt::format("{} has a seccomp filter", thread));
    if (status_field(*text, "x86_Thread_features").find("shstk") != std::string::npos)
      refusals.push_back(fmt::format("{} has a shadow stack", thread));
    if (const auto scheduling = scheduling_of(tid); scheduling && scheduling->policy == SCHED_DEADLINE)
      refusals.push_back(fmt::format("{} is scheduled by deadline", thread));
  }
  TimersCapture timers;
  if (auto looked = timers.look(process); !looked && looked.error().kind == ErrorKind::refused)
    refusals.push_back(looked.error().what);
  return {};
}

Result<void> ProcessCapture::look(HostPid process, const kernel::Tracee& tracee, const kernel::Status& status) {
  const HostPid thread = tracee.tid();
  const auto stat = TRY(kernel::read_stat(thread));
  if (status.ns_tgid.empty()) return fail(ErrorKind::failed, "no pod ids of process {}", process.value);
  state_.pid = {status.ns_tgid.back()};
  if (status.seccomp != 0) return fail(ErrorKind::refused, "{} has a seccomp filter", name_of(process));
  state_.cwd = TRY(path_of(thread, "cwd"));
  state_.root = TRY(path_of(thread, "root"));
  state_.exe = TRY(path_of(thread, "exe"));
  state_.pending = TRY(queued_signals(tracee, true));
  const std::string auxv = TRY(kernel::read_file(thread, "auxv"));
  state_.layout = {.start_code = stat.start_code,
                   .end_code = stat.end_code,
                   .start_data = stat.start_data,
                   .end_data = stat.end_data,
                   .start_brk = stat.start_brk,
                   .start_stack = stat.start_stack,
                   .arg_start = stat.arg_start,
                   .arg_end = stat.arg_end,
                   .env_start = stat.env_start,
                   .env_end = stat.env_end,
                   .auxv = Bytes(auxv.begin(), auxv.end())};
  state_.oom_score_adjustment = TRY(number_in<std::int32_t>(thread, "oom_score_adj", 10));
  state_.coredump_filter = TRY(number_in<std::uint64_t>(thread, "coredump_filter", 16));
  return timers_.look(thread);
}

void ProcessCapture::ask(kernel::Batch& batch) {
  const auto prctl = [&](std::uint64_t option, std::uint64_t argument = 0) {
    return batch.call(SYS_prctl, {option, argument});
  };
  // The mask can only be read by setting it.
  umask_ = batch.call(SYS_umask, {0});
  batch.forward(umask_, batch.call(SYS_umask), 0);
  brk_ = batch.call(SYS_brk);
  subreaper_ = batch.space(sizeof(int));
  subreaper_call_ = prctl(PR_GET_CHILD_SUBREAPER, subreaper_);
  huge_pages_ = prctl(PR_GET_THP_DISABLE);
  dumpable_ = prctl(PR_GET_DUMPABLE);
  deny_write_execute_ = prctl(prctl_get_deny_write_execute);
  memory_merge_ = prctl(prctl_get_merge);
  membarrier_ = batch.call(SYS_membarrier, {membarrier_get_registrations});
  components_ = batch.space(sizeof(std::uint64_t));
  components_call_ = batch.call(SYS_arch_prctl, {arch_get_components, components_});
  limits_ = batch.space(limit_count * sizeof(rlimit));
  for (std::size_t i = 0; i < limit_count; ++i)
    limit_calls_.push_back(batch.call(SYS_prlimit64, {0, i, 0, limits_ + i * sizeof(rlimit)}));
  actions_ = batch.space(signals * sizeof(KernelAction));
  for (std::size_t i = 0; i < signals; ++i)
    action_calls_.push_back(batch.call(SYS_rt_sigaction, {i + 1, 0, actions_ + i * sizeof(KernelAction), mask_size}));
  timers_.ask(batch);
}

Result<ProcessState> ProcessCapture::take(const kernel::Batch& batch, const PodClock& clock) {
  for (std::size_t i = 0; i < limit_count; ++i) {
    if (batch.result(limit_calls_[i]) < 0) return fail(ErrorKind::failed, "read limit {}", i);
    const auto limit = batch.read<rlimit>(limits_ + i * sizeof(rlimit));
    state_.limits.push_back({limit.rlim_cur, limit.rlim_max});
  }
  for (std::size_t i = 0; i < signals; ++i) {
    if (batch.result(action_calls_[i]) < 0) return fail(ErrorKind::failed, "read the action of signal {}", i + 1);
    const auto action = batch.read<KernelAction>(actions_ + i * sizeof(KernelAction));
    state_.actions.push_back(settable(i + 1) ? SignalAction{action.handler, action.flags, action.restorer, action.mask}
                                             : SignalAction{});
  }
  if (batch.result(umask_) < 0 || batch.result(brk_) < 0 || batch.result(dumpable_) < 0 ||
      batch.result(subreaper_call_) < 0)
    return fail(ErrorKind::failed, "read the state of process {}", state_.pid.value);
  state_.umask = static_cast<std::int32_t>(batch.result(umask_));
  state_.layout.brk = static_cast<std::uint64_t>(batch.result(brk_));
  state_.subreaper = batch.read<int>(subreaper_) != 0;
  state_.dumpable = static_cast<std::int32_t>(batch.result(dumpable_));
  // What this kernel doesn't have can't be set either.
  const auto or_none = [&](kernel::Batch::Call call) {
    return static_cast<std::uint64_t>(std::max<long>(batch.result(call), 0));
  };
  state_.huge_pages_disabled = or_none(huge_pages_) != 0;
  state_.memory_deny_write_execute = or_none(deny_write_execute_);
  state_.memory_merge = or_none(memory_merge_) == 1;
  state_.membarrier = or_none(membarrier_);
  state_.amx_permitted =
      batch.result(components_call_) == 0 && (batch.read<std::uint64_t>(components_) & 1ULL << amx_component) != 0;
  state_.timers = TRY(timers_.take(batch, clock));
  return state_;
}

void ProcessRestore::early(kernel::Batch& batch) {
  if (state_.huge_pages_disabled) batch.must("disable huge pages", SYS_prctl, {PR_SET_THP_DISABLE, 1});
  if (state_.memory_merge) batch.must("merge equal pages", SYS_prctl, {prctl_set_merge, 1});
  if (state_.subreaper) batch.must("become a subreaper", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1});
  // What is being built may need more than the program's soft limits allow; `late` sets those.
  for (const int resource : {RLIMIT_NOFILE, RLIMIT_STACK, RLIMIT_DATA, RLIMIT_AS, RLIMIT_MEMLOCK, RLIMIT_SIGPENDING}) {
    rlimit ours{};
    if (::getrlimit(static_cast<__rlimit_resource>(resource), &ours) == 0)
      batch.call(SYS_prlimit64,
                 {0, static_cast<std::uint64_t>(resource), batch.value(rlimit{ours.rlim_max, ours.rlim_max}), 0});
  }
}

Result<void> check_limits(const ProcessState& state) {
  if (::geteuid() == 0 && (TRY(kernel::permitted_capabilities(HostPid{0})) & 1ULL << CAP_SYS_RESOURCE) != 0) return {};
  for (std::size_t i = 0; i < std::min(state.limits.size(), limit_count); ++i) {
    rlimit ours{};
    if (::getrlimit(static_cast<__rlimit_resource>(i), &ours) == 0 && state.limits[i].hard > ours.rlim_max)
      return fail(ErrorKind::refused, "process {}: its resource limit {} is {}, and this node allows {}",
                  state.pid.value, i, state.limits[i].hard, ours.rlim_max);
  }
  return {};
}

Result<void> ProcessRestore::outside(HostPid process) {
  const auto write = [&](std::string_view name, const std::string& text) -> Result<void> {
    const Fd file = TRY(kernel::open_file(process, name, O_WRONLY | O_CLOEXEC));
    if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      return fail_errno("write {} to /proc/{}/{}", text, process.value, name);
    return {};
  };
  if (TRY(number_in<std::int32_t>(process, "oom_score_adj", 10)) != state_.oom_score_adjustment)
    TRY(write("oom_score_adj", fmt::format("{}", state_.oom_score_adjustment)));
  if (TRY(number_in<std::uint64_t>(process, "coredump_filter", 16)) != state_.coredump_filter)
    TRY(write("coredump_filter", fmt::format("{:#x}", state_.coredump_filter)));
  if (const std::string exe = TRY(kernel::read_link(process, "exe")); exe != state_.exe)
    return fail(ErrorKind::failed, "process {} runs {} instead of {}", process.value, exe, state_.exe);
  return {};
}

void ProcessRestore::late(kernel::Batch& batch, int free_number) {
  const MemoryLayout& layout = state_.layout;
  prctl_mm_map map{.start_code = layout.start_code,
                   .end_code = layout.end_code,
                   .start_data = layout.start_data,
                   .end_data = layout.end_data,
                   .start_brk = layout.start_brk,
                   .brk = layout.brk,
                   .start_stack = layout.start_stack,
                   .arg_start = layout.arg_start,
                   .arg_end = layout.arg_end,
                   .env_start = layout.env_start,
                   .env_end = layout.env_end,
                   .auxv = reinterpret_cast<__u64*>(batch.data(layout.auxv)),
                   .auxv_size = static_cast<__u32>(layout.auxv.size()),
                   .exe_fd = static_cast<__u32>(-1)};
  batch.must("set the memory layout", SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, batch.value(map), sizeof map});
  // The program: the kernel wants its descriptor inside the struct, so it must have a number that is known before.
  // EBUSY when the old program is still mapped: in a child forked from a rebuilt parent, whose program is right
  // already. `outside` looks at what came of it.
  const auto number = static_cast<std::uint64_t>(free_number);
  const auto program = batch.must(fmt::format("open {}", state_.exe), SYS_open,
                                  {batch.text(state_.exe), O_RDONLY | O_NONBLOCK | O_CLOEXEC});
  batch.forward(program, batch.must("move the program's descriptor", SYS_dup2, {0, number}), 0);
  map.exe_fd = static_cast<__u32>(free_number);
  batch.call(SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, batch.value(map), sizeof map});
  batch.call(SYS_close, {number});
  batch.forward(program, batch.call(SYS_close, {0}), 0);  // EBADF when both are the same
  if (state_.root != "/") batch.must(fmt::format("chroot {}", state_.root), SYS_chroot, {batch.text(state_.root)});
  // The path is the mount namespace's, not the new root's.
  std::string directory = state_.cwd;
  if (state_.root != "/" && directory.starts_with(state_.root)) directory.erase(0, state_.root.size());
  if (directory.empty()) directory.assign(1, '/');
  batch.must(fmt::format("enter {}", state_.cwd), SYS_chdir, {batch.text(directory)});
  batch.call(SYS_umask, {static_cast<std::uint64_t>(state_.umask)});
  for (std::size_t i = 0; i < std::min(state_.actions.size(), signals); ++i) {
    if (!settable(i + 1)) continue;
    const SignalAction& action = state_.actions[i];
    const KernelAction value{action.handler, action.flags, action.restorer, action.mask};
    batch.must(fmt::format("set the action of signal {}", i + 1), SYS_rt_sigaction,
               {i + 1, batch.value(value), 0, mask_size});
  }
  for (std::uint64_t command = 1; command < membarrier_get_registrations; command <<= 1)
    if ((state_.membarrier & command) != 0) batch.must("register for membarrier", SYS_membarrier, {command});
  if (state_.amx_permitted) batch.must("permit AMX", SYS_arch_prctl, {arch_request_component, amx_component});
  restore_timers(batch, state_.timers, clock_);
  for (std::size_t i = 0; i < std::min(state_.limits.size(), limit_count); ++i)
    batch.must(fmt::format("set resource limit {}", i), SYS_prlimit64,
               {0, i, batch.value(rlimit{state_.limits[i].soft, state_.limits[i].hard}), 0});
}

void ProcessRestore::last(kernel::Batch& batch) {
  // 2 (suid_dumpable) can't be asked for; changing credentials has set it.
  if (state_.dumpable != 2)
    batch.must("set the dumpable flag", SYS_prctl, {PR_SET_DUMPABLE, static_cast<std::uint64_t>(state_.dumpable)});
  if (state_.memory_deny_write_execute != 0)
    batch.must("deny writable code", SYS_prctl, {prctl_set_deny_write_execute, state_.memory_deny_write_execute});
}

}  // namespace godwit::objects
