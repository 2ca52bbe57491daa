#include "objects/process_state.hpp"

#include <grp.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/securebits.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <fstream>
#include <set>
#include <sstream>

#include "transplant.hpp"

namespace godwit::test {
namespace {

std::string slurp(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// What a process can see of itself, as text: the same before and after, or something was lost.
std::string look_at_self() {
  static const std::set<std::string> moving{"FDSize",  // how far its table once grew
                                            "VmPeak",
                                            "VmSize",
                                            "VmHWM",
                                            "VmRSS",
                                            "RssAnon",
                                            "RssFile",
                                            "RssShmem",
                                            "VmData",
                                            "VmPTE",
                                            "voluntary_ctxt_switches",
                                            "nonvoluntary_ctxt_switches",
                                            "TracerPid",
                                            "SigQ"};
  std::string all;
  std::istringstream status(slurp("/proc/self/status"));
  for (std::string line; std::getline(status, line);)
    if (!moving.contains(line.substr(0, line.find(':')))) all += line + "\n";
  all += slurp("/proc/self/limits") + slurp("/proc/self/timers") + slurp("/proc/self/oom_score_adj") +
         slurp("/proc/self/coredump_filter") + slurp("/proc/self/timerslack_ns") + slurp("/proc/self/cmdline") +
         slurp("/proc/self/environ") + slurp("/proc/self/auxv") + slurp("/proc/self/personality");
  // Group, session, terminal, start_code … env_end, exit signal, priority and policy. 39 is the processor it happens to
  // be on.
  const std::string stat = slurp("/proc/self/stat");
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string field;
  for (int i = 3; fields >> field; ++i)
    if ((i >= 5 && i <= 7) || (i >= 26 && i <= 28) || i == 38 || i == 40 || i == 41 || (i >= 45 && i <= 51))
      all += fmt::format("stat {}: {}\n", i, field);
  for (const char* link : {"exe", "cwd", "root"}) {
    char path[4096] = {};
    if (::readlink((std::string("/proc/self/") + link).c_str(), path, sizeof path - 1) > 0)
      all += std::string(path) + "\n";
  }
  for (int signal = 1; signal <= 64; ++signal) {
    std::array<std::uint64_t, 4> action{};
    ::syscall(SYS_rt_sigaction, signal, nullptr, action.data(), 8);
    all += fmt::format("signal {}: {:x} {:x} {:x} {:x}\n", signal, action[0], action[1], action[2], action[3]);
  }
  int subreaper = 0, death = 0;
  ::prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
  ::prctl(PR_GET_PDEATHSIG, &death);
  std::uint64_t components = 0;
  ::syscall(SYS_arch_prctl, 0x1022, &components);
  all += fmt::format("components {:x}\n", components);
  const long identity = ::syscall(SYS_setfsuid, -1) * 100'000L + ::syscall(SYS_setfsgid, -1);
  all += fmt::format("{} {} {} {} {} {} {} {:x}\n", subreaper, death, ::prctl(PR_GET_DUMPABLE),
                     ::prctl(PR_GET_THP_DISABLE), ::prctl(PR_GET_SECUREBITS), identity,
                     ::syscall(SYS_membarrier, 1 << 9, 0, 0), reinterpret_cast<std::uint64_t>(::sbrk(0)));
  return all;
}

/// The first line that differs.
std::string difference(const std::string& a, const std::string& b) {
  std::istringstream left(a), right(b);
  std::string l, r;
  while (std::getline(left, l) && std::getline(right, r))
    if (l != r) return l + " | " + r;
  return "length";
}

void compare(Shared& shared, const std::string& before, const std::string& after) {
  if (before != after) shared.complain(difference(before, after).c_str(), 1, 0);
}

void* handler_address() {
  return reinterpret_cast<void*>(&slurp);
}

TEST(ProcessState, WhatAProcessSeesOfItselfStays) {
  Transplant transplant([](Shared& shared) {
    ::umask(027);
    if (::chdir("/usr/share") != 0) return 2;
    struct sigaction action {};
    action.sa_sigaction = reinterpret_cast<void (*)(int, siginfo_t*, void*)>(handler_address());
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK | SA_NODEFER;
    ::sigaddset(&action.sa_mask, SIGTERM);
    ::sigaction(SIGUSR1, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGRTMAX, SIG_IGN);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    for (const int signal : {SIGHUP, SIGRTMIN + 1, SIGRTMIN + 2}) ::sigaddset(&blocked, signal);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    for (int i = 0; i < 3; ++i) ::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = 40 + i});
    ::kill(::getpid(), SIGHUP);
    for (const auto& [which, soft, hard] : {std::tuple{RLIMIT_CORE, 0UL, 5000UL},
                                            {RLIMIT_NOFILE, 300UL, 900UL},
                                            {RLIMIT_STACK, 4UL << 20, 1UL << 30},
                                            {RLIMIT_NICE, 3UL, 4UL}}) {
      const rlimit limit{soft, hard};
      ::setrlimit(which, &limit);
    }
    ::prctl(PR_SET_THP_DISABLE, 1);
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1);
    ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    ::syscall(SYS_arch_prctl, 0x1023, 18);  // AMX, where the processor has it
    std::ofstream("/proc/self/oom_score_adj") << 321;
    std::ofstream("/proc/self/coredump_filter") << "0x17";
    ::prctl(PR_SET_DUMPABLE, 0);
    const std::string before = look_at_self();
    shared.ready++;
    shared.wait_moved();
    const std::string after = look_at_self();
    compare(shared, before, after);
    for (int i = 0; i < 3; ++i) {
      siginfo_t info{};
      sigset_t wanted;
      ::sigemptyset(&wanted);
      ::sigaddset(&wanted, SIGRTMIN + 1);
      ::sigwaitinfo(&wanted, &info);
      if (info.si_value.sival_int != 40 + i) shared.complain("queued value", info.si_value.sival_int, 40 + i);
    }
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(1);
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
}

/// Ends as an ordinary user with a few capabilities, one of them ambient, and a smaller bounding set.
void become_somebody(Shared& shared, unsigned securebits) {
  const std::array<gid_t, 3> groups{10, 20, 4000};
  ::prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE);
  ::prctl(PR_CAPBSET_DROP, CAP_MKNOD);
  ::prctl(PR_SET_KEEPCAPS, 1);
  ::setgroups(groups.size(), groups.data());
  ::syscall(SYS_setresgid, 2001, 2002, 2003);
  ::syscall(SYS_setresuid, 1001, 1002, 1003);
  __user_cap_header_struct head{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  const auto bit = [](int capability) { return 1U << capability; };
  const __u32 some = bit(CAP_NET_BIND_SERVICE) | bit(CAP_KILL) | bit(CAP_SETPCAP);
  std::array<__user_cap_data_struct, 2> data{};
  data[0] = {.effective = some, .permitted = some, .inheritable = bit(CAP_NET_BIND_SERVICE)};
  if (::syscall(SYS_capset, &head, data.data()) != 0) shared.complain("capset", errno, 0);
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0) != 0)
    shared.complain("raise", errno, 0);
  if (::prctl(PR_SET_SECUREBITS, securebits) != 0) shared.complain("securebits", errno, 0);
  data[0] = {.effective = bit(CAP_KILL),
             .permitted = bit(CAP_NET_BIND_SERVICE) | bit(CAP_KILL),
             .inheritable = bit(CAP_NET_BIND_SERVICE)};
  if (::syscall(SYS_capset, &head, data.data()) != 0) shared.complain("second capset", errno, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::prctl(PR_SET_DUMPABLE, 1);
}

std::string status_of(pid_t pid) {
  std::istringstream status(slurp(fmt::format("/proc/{}/status", pid).c_str()));
  std::string all;
  for (std::string line; std::getline(status, line);)
    for (const char* key : {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:"})
      if (line.starts_with(key)) all += line + "\n";
  return all;
}

/// A rebuilt process of an ordinary user begins as a privileged stub; it takes over what the other is.
void move_somebody(unsigned securebits) {
  Transplant source([&](Shared& shared) {
    become_somebody(shared, securebits);
    shared.ready++;
    while (true) ::pause();
    return 0;
  });
  Transplant stub([](Shared& shared) {
    shared.ready++;
    while (true) ::pause();
    return 0;
  });
  source.wait_ready(1);
  stub.wait_ready(1);
  const auto image = source.capture();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(source.shared().failed, 0) << source.complaints();
  const auto state = image::unpack<objects::ThreadState>(image->threads.front());
  ASSERT_TRUE(state) << state.error().message();
  ASSERT_EQ(state->settings->credentials.securebits, securebits);

  const HostPid pid{stub.pid()};
  auto thread = kernel::Tracee::seize(pid);
  ASSERT_TRUE(thread && thread->interrupt() && thread->wait_stop());
  auto gadget = kernel::Gadget::install(*thread);
  ASSERT_TRUE(gadget) << gadget.error().message();
  auto batch = gadget->batch();
  objects::ThreadRestore restore(*state);
  ASSERT_TRUE(restore.credentials(batch, pid));
  const auto ran = gadget->run(*thread, batch);
  ASSERT_TRUE(ran) << ran.error().message();
  EXPECT_EQ(status_of(source.pid()), status_of(stub.pid()));

  batch = gadget->batch();
  objects::CredentialsCapture again;
  again.ask(batch, true);
  const auto death = batch.space(4);
  batch.call(SYS_prctl, {PR_GET_PDEATHSIG, death});
  const auto asked = gadget->run(*thread, batch);
  ASSERT_TRUE(asked) << asked.error().message();
  EXPECT_EQ(*again.take(batch, pid), state->settings->credentials);
  EXPECT_EQ(batch.read<int>(death), SIGKILL);
}

TEST(ProcessState, CredentialsOfAnOrdinaryUser) {
  move_somebody(0);
}

TEST(ProcessState, CredentialsUnderLockedSecurebits) {
  move_somebody(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
                SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_KEEP_CAPS_LOCKED);
}

std::atomic<long> fired_at{0};

long now_ms() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1'000'000;
}

TEST(ProcessState, TimersGoOn) {
  Transplant transplant([](Shared& shared) {
    struct sigaction action {};
    action.sa_handler = [](int) { fired_at = now_ms(); };
    ::sigaction(SIGRTMIN + 5, &action, nullptr);
    std::array<timer_t, 5> timers{};
    const std::array<clockid_t, 5> clocks{CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID,
                                          CLOCK_BOOTTIME};
    for (std::size_t i = 0; i < timers.size(); ++i) {
      sigevent event{};
      event.sigev_notify = i == 2 ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
      event.sigev_signo = SIGRTMIN + 5;
      event.sigev_value.sival_int = static_cast<int>(i) + 1;
      event._sigev_un._tid = ::gettid();
      ::timer_create(clocks[i], &event, &timers[i]);
    }
    ::timer_delete(timers[1]);
    const long began = now_ms();
    const itimerspec soon{.it_interval = {0, 0}, .it_value = {0, 500'000'000}};
    ::timer_settime(timers[2], 0, &soon, nullptr);
    const itimerspec later{.it_interval = {7, 5}, .it_value = {100, 0}};
    ::timer_settime(timers[0], 0, &later, nullptr);
    ::timer_settime(timers[3], 0, &later, nullptr);
    const itimerval interval{.it_interval = {3, 20}, .it_value = {50, 0}};
    ::setitimer(ITIMER_REAL, &interval, nullptr);
    ::setitimer(ITIMER_PROF, &interval, nullptr);
    const std::string before = slurp("/proc/self/timers");
    shared.ready++;
    while (fired_at == 0) ::pause();
    if (shared.moved == 0) shared.complain("fired before the move", 1, 0);
    if (fired_at - began < 499 || fired_at - began > 620) shared.complain("fired at ms", fired_at - began, 500);
    if (before != slurp("/proc/self/timers")) shared.complain("/proc/self/timers differs", 1, 0);
    for (const std::size_t i : {0, 3}) {
      itimerspec left{};
      ::timer_gettime(timers[i], &left);
      if (left.it_interval.tv_sec != 7 || left.it_interval.tv_nsec != 5)
        shared.complain("interval", left.it_interval.tv_nsec, 5);
      if (left.it_value.tv_sec < 98 || left.it_value.tv_sec > 99) shared.complain("left", left.it_value.tv_sec, 99);
    }
    for (const auto which : {ITIMER_REAL, ITIMER_PROF}) {
      itimerval left{};
      ::getitimer(which, &left);
      if (left.it_interval.tv_sec != 3 || left.it_interval.tv_usec < 20 || left.it_value.tv_sec < 48)
        shared.complain("interval timer", left.it_value.tv_sec, 49);
    }
    return shared.failed == 0 ? 0 : 1;
  });
  transplant.wait_ready(1);
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  EXPECT_EQ(transplant.result(), 0) << transplant.complaints();
}

/// What has been rebuilt, captured again, is what was captured: nothing is half restored that a program wouldn't see.
TEST(ProcessState, CapturedTwiceIsTheSame) {
  Transplant transplant([](Shared& shared) {
    shared.ready++;
    while (true) ::pause();
    return 0;
  });
  transplant.wait_ready(1);
  const auto moved = transplant.move();
  ASSERT_TRUE(moved) << moved.error().message();
  const auto first = transplant.captured();
  transplant.wait_ready(1);
  const auto second = transplant.capture_again();
  ASSERT_TRUE(second) << second.error().message();
  auto a = *image::unpack<objects::ProcessState>(first.process);
  auto b = *image::unpack<objects::ProcessState>(second->process);
  a.timers.taken = b.timers.taken = 0;
  EXPECT_EQ(image::pack(a), image::pack(b));
  auto thread_a = *image::unpack<objects::ThreadState>(first.threads[0]);
  auto thread_b = *image::unpack<objects::ThreadState>(second->threads[0]);
  EXPECT_EQ(image::pack(thread_a), image::pack(thread_b));
}

TEST(ProcessState, PreflightNamesWhatCantMove) {
  const std::string directory = fmt::format("/tmp/godwit-gone-{}", ::getpid());
  ASSERT_EQ(::mkdir(directory.c_str(), 0700), 0);
  Transplant transplant([&](Shared& shared) {
    if (::chdir(directory.c_str()) != 0 || ::rmdir(directory.c_str()) != 0) return 2;
    ::prctl(PR_SET_SECCOMP, 1);
    shared.ready++;
    while (true) {
    }
    return 0;
  });
  transplant.wait_ready(1, false);
  std::vector<std::string> refusals;
  const auto looked = objects::preflight_process(HostPid{transplant.pid()}, refusals);
  ASSERT_TRUE(looked) << looked.error().message();
  ASSERT_EQ(refusals.size(), 2U);
  EXPECT_NE(refusals[0].find("cwd is " + directory), std::string::npos) << refusals[0];
  EXPECT_NE(refusals[1].find("seccomp"), std::string::npos) << refusals[1];
}

}  // namespace
}  // namespace godwit::test
