#include "pod/pod.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "kernel/netlink.hpp"
#include "kernel/priority.hpp"
#include "pod/workshop.hpp"
#include "pod_fixture.hpp"

namespace godwit::pod {
namespace {

TEST_F(PodTest, RunsAProgramAndKeepsItsOutputAndStatus) {
  auto pod = run(create(shell("echo hi; echo oh >&2; exit 3")));
  ASSERT_TRUE(pod);
  EXPECT_EQ(pod->life()->first, PodPid{2});
  const int end = await_end(*pod);
  ASSERT_TRUE(WIFEXITED(end));
  EXPECT_EQ(WEXITSTATUS(end), 3);
  EXPECT_EQ(output(*pod), "hi\n");
  EXPECT_EQ(output(*pod, FrameKind::error), "oh\n");
  EXPECT_EQ(pod->life()->ended, end);
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, SaysWhyAProgramCannotStart) {
  auto pod = create(shell(""));
  ASSERT_TRUE(pod);
  Program program;
  program.arguments = {"/no/such/program"};
  const auto started = pod->start(program);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, ENOENT);
  EXPECT_EQ(started.error().message(), "start /no/such/program: No such file or directory");
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, HasIdsAndNamesOfItsOwn) {
  EXPECT_EQ(result_of("echo $$; hostname; ls /proc | grep -c '^[0-9]'; echo /dev/pts/*; cat /proc/1/comm"),
            "2\nswan\n4\n/dev/pts/ptmx\ngodwit-init\n");
}

TEST_F(PodTest, KeepsMoreDescriptorsThanItsProgramMayHave) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  if (before.rlim_max < 4096) GTEST_SKIP() << "no more than " << before.rlim_max << " descriptors here";
  const rlimit few{256, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  auto own = Zygote::start();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(own) << own.error().message();
  site.zygote = &*own;
  auto pod = run(create(shell("ulimit -Sn; ulimit -Hn; exec sleep 1000")));
  ASSERT_TRUE(pod);
  const Fd kept(open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (int i = 0; i < 2000; ++i) {
    const auto deposited = pod->deposit(fmt::format("test/{}", i), kept.get());
    ASSERT_TRUE(deposited) << i << ": " << deposited.error().message();
  }
  EXPECT_TRUE(pod->withdraw("test/1999"));
  await([&] { return output(*pod) == fmt::format("256\n{}\n", before.rlim_max); });
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, RefusesADescriptorThatItsInitHasNoRoomFor) {
  auto pod = run(create(shell("exec sleep 1000")));
  ASSERT_TRUE(pod);
  const Fd kept(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto limit = [&](rlim_t most) {
    const rlimit soft{most, most};
    ASSERT_EQ(prlimit(pod->init().value, RLIMIT_NOFILE, &soft, nullptr), 0);
  };
  // By its own rule, so that there is room for everything else.
  limit(128);
  int deposits = 0;
  while (deposits < 128 && pod->deposit(fmt::format("test/{}", deposits), kept.get())) ++deposits;
  EXPECT_EQ(deposits, 96);
  // And by the kernel: the descriptor doesn't get through, its message does.
  limit(8);
  const auto refused = pod->deposit("test/one-more", kept.get());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused) << refused.error().message();
  EXPECT_TRUE(pod->life());
  EXPECT_TRUE(pod->forget("test/0"));
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, WritesOnlyToItsUpperLayer) {
  auto pod =
      run(create(shell("echo mine > /etc/godwit-test-file; chmod 640 /etc/godwit-test-file; mkdir /godwit-test")));
  ASSERT_TRUE(pod);
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_FALSE(std::filesystem::exists("/etc/godwit-test-file"));
  EXPECT_FALSE(std::filesystem::exists("/godwit-test"));
  std::string content;
  std::ifstream(pod->upper() + "/etc/godwit-test-file") >> content;
  EXPECT_EQ(content, "mine");
  EXPECT_TRUE(std::filesystem::is_directory(pod->upper() + "/godwit-test"));
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, DoesNotSeeTheStateDirectory) {
  EXPECT_EQ(result_of("ls -A " + site.state_dir + "; touch " + site.state_dir + "/x 2>/dev/null || echo no"), "no\n");
}

TEST_F(PodTest, RefusesAnUpperLayerOnAnOverlay) {
  const std::string merged = base + "/overlay";
  for (const char* name : {"/lower", "/upper", "/work", "/overlay"}) std::filesystem::create_directories(base + name);
  const std::string options = fmt::format("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", base);
  ASSERT_EQ(mount("overlay", merged.c_str(), "overlay", 0, options.c_str()), 0);
  site.state_dir = merged;
  const auto pod = Pod::create(site, shell("true"));
  EXPECT_EQ(umount(merged.c_str()), 0);
  site.state_dir = base + "/state";
  std::filesystem::remove_all(site.run_dir + "/pods");
  ASSERT_FALSE(pod);
  EXPECT_EQ(pod.error().kind, ErrorKind::refused);
  EXPECT_NE(pod.error().message().find("overlay"), std::string::npos) << pod.error().message();
}

/// Puts the caller on an overlay above the machine's root, as a node of the playground is; `real` stays what it is.
bool enter_overlay(const std::string& base, const std::vector<std::string>& real) {
  const std::string root = base + "/root";
  for (const char* name : {"/root", "/root-upper", "/root-work"}) std::filesystem::create_directories(base + name);
  const std::string options = fmt::format("lowerdir=/,upperdir={0}/root-upper,workdir={0}/root-work", base);
  bool good = unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
              mount("overlay", root.c_str(), "overlay", 0, options.c_str()) == 0;
  std::vector<std::string> bound = {"/proc", "/sys", "/dev"};
  bound.insert(bound.end(), real.begin(), real.end());
  for (const auto& path : bound)
    good = good && mount(path.c_str(), (root + path).c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0;
  return good && chdir(root.c_str()) == 0 && syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 &&
         chdir("/") == 0;
}

TEST_F(PodTest, StandsOnANodeWhoseRootIsAnOverlay) {
  const pid_t node = fork();
  ASSERT_GE(node, 0);
  if (node == 0) {
    if (!enter_overlay(base, {site.state_dir, site.run_dir})) _exit(2);
    std::ofstream("/node-file") << "of the node\n";
    auto own = Zygote::start();
    site.zygote = &*own;
    EXPECT_EQ(result_of("cat /node-file; echo x > /node-file; mv /etc/apt /etc/apt2; ls -d /etc/apt*"),
              "of the node\n/etc/apt2\n");
    std::string content;
    std::getline(std::ifstream("/node-file"), content);
    EXPECT_EQ(content, "of the node");
    site.state_dir = base + "/state-on-overlay";
    std::filesystem::create_directories(site.state_dir);
    const auto refused = Pod::create(site, shell("true"));
    EXPECT_FALSE(refused);
    EXPECT_EQ(refused ? ErrorKind::failed : refused.error().kind, ErrorKind::refused);
    _exit(HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(node, &status, 0), node);
  EXPECT_EQ(status, 0);
}

TEST_F(PodTest, StandsInTheNodesBridge) {
  const pid_t node = fork();
  ASSERT_GE(node, 0);
  if (node == 0) {
    if (unshare(CLONE_NEWNET) != 0) _exit(2);
    auto own = Zygote::start();
    site.zygote = &*own;
    site.bridge = "gwbr";
    const auto netlink = kernel::Netlink::open();
    if (!netlink || !netlink->create_bridge(site.bridge)) _exit(3);
    const int bridge = *netlink->index(site.bridge);
    if (!netlink->add_address(bridge, *kernel::parse_prefix("10.99.0.1/24")) || !netlink->set_up(bridge, true))
      _exit(4);
    const Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(7000)};
    if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) _exit(5);
    if (listen(listener.get(), 4) != 0) _exit(6);

    auto spec = shell("");
    spec.program.arguments = {"bash", "-c", "echo from pod > /dev/tcp/10.99.0.1/7000"};
    spec.network.addresses = {"10.99.0.2/24"};
    auto pod = run(create(spec));
    EXPECT_EQ(await_end(*pod), 0) << output(*pod, FrameKind::error);
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    const Fd connection(accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK));
    EXPECT_EQ(ntohl(peer.sin_addr.s_addr), 0x0a630002u);
    char text[32] = {};
    EXPECT_EQ(read(connection.get(), text, sizeof text), 9);
    EXPECT_TRUE(pod->announce());
    EXPECT_TRUE(pod->destroy());
    EXPECT_EQ(netlink->devices()->size(), 2u) << "the pod's port is left";
    _exit(HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(node, &status, 0), node);
  EXPECT_EQ(status, 0);
}

TEST_F(PodTest, IsTornDownByWhoTracesIt) {
  auto pod = run(create(shell("sleep 1000 & wait")));
  ASSERT_TRUE(pod);
  await([&] { return pod->workload().processes()->size() == 2; });
  const auto processes = pod->workload().processes();
  for (const HostPid process : *processes) ASSERT_EQ(ptrace(PTRACE_SEIZE, process.value, nullptr, nullptr), 0);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(pod->destroy());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1)) << "it was waited for in vain";
}

TEST_F(PodTest, IsTornDownByWhoTracesItsDead) {
  auto pod = run(create(shell("exec sleep 1000")));
  ASSERT_TRUE(pod);
  const HostPid first = pod->workload().processes()->front();
  ASSERT_EQ(ptrace(PTRACE_SEIZE, first.value, nullptr, nullptr), 0);
  ASSERT_EQ(kill(first.value, SIGKILL), 0);
  // A zombie that waits for its tracer is in no cgroup's list.
  await([&] { return pod->workload().processes()->empty(); });
  const auto destroyed = pod->destroy(false, {first});
  EXPECT_TRUE(destroyed) << destroyed.error().message();
}

TEST_F(PodTest, ContinuesClocksThatArrive) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t at = now.tv_sec * 1'000'000'000 + now.tv_nsec;
  const std::int64_t hour = 3'600'000'000'000;
  // Ahead of the host's and with fractions: 500 hours and 7 ns; boottime more.
  Pod::Arrival arrival{{at + 500 * hour + 7, at + 600 * hour + 999'999'999}, at};
  auto pod = create(shell("read up rest < /proc/uptime; echo $up"), arrival);
  ASSERT_TRUE(pod);
  const auto reading = pod->clocks();
  ASSERT_TRUE(reading);
  EXPECT_EQ(reading->clocks.monotonic - reading->at, 500 * hour + 7);
  EXPECT_NEAR(static_cast<double>(reading->clocks.boottime - reading->at), 600.0 * hour + 1e9, 1e6);
  // And as a process in there sees it: /proc/uptime is boottime.
  pod = run(std::move(pod));
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_NEAR(std::stod(output(*pod)), static_cast<double>(reading->clocks.boottime) / 1e9, 30);
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, MakesStubsWithGivenPids) {
  auto pod = create(shell("true"), Pod::Arrival{{}, 0});
  ASSERT_TRUE(pod);
  const auto stub = pod->stub(PodPid{4711});
  ASSERT_TRUE(stub) << stub.error().message();
  const auto status = kernel::read_status(stub->process);
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ(status->ns_pid.back(), 4711);
  EXPECT_EQ(status->ns_sid.back(), 1);
  EXPECT_EQ(kernel::list_descriptors(stub->process)->size(), 0u);
  EXPECT_EQ(pod->workload().processes()->front(), stub->process);
  const auto again = pod->stub(PodPid{4711});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, EEXIST);
  ASSERT_TRUE(pod->set_last_pid(PodPid{5000}));
  EXPECT_EQ(pod->last_pid()->value, 5000);
  // The end of the stub that is said to be the first is the end of the pod.
  ASSERT_TRUE(pod->set_first(PodPid{4711}));
  ASSERT_EQ(kill(stub->process.value, SIGKILL), 0);
  EXPECT_EQ(await_end(*pod), SIGKILL);
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, WorkshopStandsInThePod) {
  auto pod = run(create(shell("echo inside > /var/tmp/godwit-seen; sleep 1000")));
  ASSERT_TRUE(pod);
  await([&] { return std::filesystem::exists(pod->upper() + "/var/tmp/godwit-seen"); });
  auto workshop = Workshop::open(pod->namespaces());
  ASSERT_TRUE(workshop) << workshop.error().message();
  Fd file;
  Fd socket;
  ASSERT_TRUE((*workshop)->run([&]() -> Result<void> {
    file = Fd(open("/var/tmp/godwit-seen", O_RDONLY | O_CLOEXEC));
    socket = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return file ? Result<void>{} : fail_errno("open");
  }));
  char text[16] = {};
  EXPECT_EQ(read(file.get(), text, sizeof text), 7);
  EXPECT_STREQ(text, "inside\n");
  EXPECT_EQ(access("/var/tmp/godwit-seen", F_OK), -1);
  const Fd network(ioctl(socket.get(), 0x894c));  // SIOCGSKNS: the namespace that the socket is in
  struct stat of_socket {};
  struct stat of_pod {};
  fstat(network.get(), &of_socket);
  fstat(pod->namespaces().net.get(), &of_pod);
  EXPECT_EQ(of_socket.st_ino, of_pod.st_ino);
  const auto failed = (*workshop)->run([] { return Result<void>(fail(ErrorKind::refused, "no")); });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().what, "no");
  EXPECT_TRUE((*workshop)->run([] { return Result<void>{}; })) << "an error is told once";
  const auto thrown = (*workshop)->run([]() -> Result<void> { throw std::bad_alloc(); });
  ASSERT_FALSE(thrown);
  EXPECT_NE(thrown.error().message().find("no memory"), std::string::npos) << thrown.error().message();
  workshop->reset();
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, FreezesAndThaws) {
  auto pod = run(create(shell("while :; do echo tick; sleep 0.001; done")));
  ASSERT_TRUE(pod);
  await([&] { return !output(*pod).empty(); });
  ASSERT_TRUE(pod->workload().freeze());
  EXPECT_TRUE(*pod->workload().frozen());
  ASSERT_TRUE(pod->flush());
  const auto frozen = output(*pod);
  ASSERT_TRUE(pod->flush());
  EXPECT_EQ(output(*pod), frozen);
  ASSERT_TRUE(pod->workload().thaw());
  await([&] { return output(*pod).size() > frozen.size(); });
  EXPECT_EQ(log_segments(pod->log_directory())->size(), 2u);
  // A frozen pod can be torn down.
  ASSERT_TRUE(pod->workload().freeze());
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, KillsWhatTheFirstProgramLeaves) {
  auto pod = run(create(shell("setsid sleep 1000 & sleep 0.01; exit 0")));
  ASSERT_TRUE(pod);
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_TRUE(pod->workload().processes()->empty());
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, KeepsDescriptors) {
  auto pod = create(shell("true"));
  ASSERT_TRUE(pod);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_TRUE(pod->deposit("pipe", ends[1]));
  close(ends[1]);
  auto back = pod->withdraw("pipe");
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(write(back->get(), "x", 1), 1);
  back->reset();
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  ASSERT_TRUE(pod->forget("pipe"));
  EXPECT_EQ(read(ends[0], &byte, 1), 0) << "the init still has the other end";
  EXPECT_FALSE(pod->withdraw("pipe"));
  close(ends[0]);
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, TakesInput) {
  auto spec = shell("read line; echo got $line; cat; exit 5");
  spec.program.input = true;
  auto pod = run(create(spec));
  ASSERT_TRUE(pod);
  {
    const auto writer = pod->withdraw("stdin-writer");
    ASSERT_TRUE(writer);
    type(*pod, *writer, "one\ntwo");
  }
  EXPECT_FALSE(pod->life()->input_ended);
  ASSERT_TRUE(pod->forget("stdin-writer"));
  EXPECT_EQ(WEXITSTATUS(await_end(*pod)), 5);
  EXPECT_TRUE(pod->life()->input_ended);
  EXPECT_EQ(output(*pod), "got one\ntwo");
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, GivesATerminal) {
  auto spec = shell("tty; read line; stty size; echo [$line]; kill -INT $$");
  spec.program.terminal = true;
  auto pod = run(create(spec));
  ASSERT_TRUE(pod);
  const auto master = pod->withdraw("terminal-master");
  ASSERT_TRUE(master);
  await([&] { return output(*pod, FrameKind::terminal) == "/dev/pts/0\r\n"; });
  const winsize size{.ws_row = 33, .ws_col = 77, .ws_xpixel = 0, .ws_ypixel = 0};
  ASSERT_EQ(ioctl(master->get(), TIOCSWINSZ, &size), 0);
  type(*pod, *master, "hello\r");
  EXPECT_EQ(await_end(*pod), SIGINT);
  EXPECT_EQ(output(*pod, FrameKind::terminal), "/dev/pts/0\r\nhello\r\n33 77\r\n[hello]\r\n");
  EXPECT_EQ(pod->streams()->count("terminal"), 1u);
  EXPECT_TRUE(pod->destroy());
}

/// What runs `work` as a daemon that is then killed without a chance to tidy up.
void in_a_daemon_that_dies(const std::function<void()>& work) {
  const pid_t daemon = fork();
  ASSERT_GE(daemon, 0);
  if (daemon == 0) {
    work();
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(daemon, &status, 0), daemon);
  ASSERT_EQ(status, SIGKILL) << "the daemon failed before";
}

TEST_F(PodTest, VanishesWithTheDaemonUntilItIsKept) {
  const std::string note = base + "/note";
  in_a_daemon_that_dies([&] {
    auto own = Zygote::start();
    site.zygote = &*own;
    auto pod = Pod::create(site, shell("true"), Pod::Arrival{{}, 0});
    if (!pod) _exit(1);
    const auto stub = (*pod)->stub(PodPid{33});
    if (!stub) _exit(1);
    std::ofstream(note) << (*pod)->init().value << ' ' << stub->process.value;
    (void)pod->release();
  });
  pid_t init = 0;
  pid_t stub = 0;
  std::ifstream(note) >> init >> stub;
  ASSERT_GT(stub, 0);
  await([&] { return !runs(HostPid{init}) && !runs(HostPid{stub}); });
  const auto adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted) << adopted.error().message();
  EXPECT_TRUE(adopted->empty());
  EXPECT_FALSE(std::filesystem::exists(site.state_dir + "/pods/p"));
  EXPECT_FALSE(std::filesystem::exists(site.cgroup + "/pods/p"));
}

TEST_F(PodTest, OutlivesTheDaemonAndIsAdopted) {
  const std::string go = "/var/tmp/godwit-go";
  in_a_daemon_that_dies([&] {
    auto own = Zygote::start();
    site.zygote = &*own;
    auto pod =
        Pod::create(site, shell("echo before; until [ -e " + go + " ]; do sleep 0.01; done; echo after; exit 6"));
    if (!pod || !(*pod)->start((*pod)->spec().program)) _exit(1);
    int ends[2];
    if (pipe(ends) != 0 || !(*pod)->deposit("end", ends[0])) _exit(1);
    if (!(*pod)->gate().set(Gate::State::shut) || !(*pod)->deposit_gate()) _exit(1);
    (void)pod->release();
  });
  auto adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted) << adopted.error().message();
  ASSERT_EQ(adopted->size(), 1u);
  auto pod = std::move(adopted->front());
  EXPECT_EQ(pod->spec().hostname, "swan");
  EXPECT_TRUE(pod->withdraw("end"));
  EXPECT_EQ(*pod->gate().state(), Gate::State::shut);
  EXPECT_FALSE(pod->life()->ended);
  EXPECT_FALSE(Pod::create(site, shell("true"))) << "the name is taken";
  Program touch;
  touch.arguments = {"touch", go};
  ASSERT_TRUE(pod->execute("1f", touch));
  EXPECT_EQ(WEXITSTATUS(await_end(*pod)), 6);
  EXPECT_EQ(output(*pod), "before\nafter\n");

  // The next daemon is told again how it ended.
  pod.reset();
  adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted);
  ASSERT_EQ(adopted->size(), 1u);
  EXPECT_EQ(WEXITSTATUS(await_end(*adopted->front())), 6);
  EXPECT_TRUE(adopted->front()->destroy());
}

TEST_F(PodTest, LetsDownWhatADeadDaemonHasRaised) {
  const std::string note = base + "/note";
  constexpr int raised_to = 20;
  constexpr std::uint64_t slack = 70'000;
  in_a_daemon_that_dies([&] {
    auto own = Zygote::start();
    site.zygote = &*own;
    auto pod = Pod::create(site, shell("exec sleep 1000"));
    const auto started = pod ? (*pod)->start((*pod)->spec().program) : Result<Started>();
    const auto other = pod ? (*pod)->stub(PodPid{33}) : Result<Stub>();
    if (!started || !other) _exit(1);
    const HostPid first = started->process;
    if (!kernel::set_policy(first, {SCHED_BATCH, 0}) || !kernel::set_timer_slack(first, slack)) _exit(2);
    std::vector<RaisedThread> told{{started->pid.value, raised_to, SCHED_BATCH, 0, slack},
                                   {33, raised_to, SCHED_OTHER, 0, slack}};
    if (!(*pod)->raising(told)) _exit(3);
    if (!kernel::set_policy(first, {SCHED_FIFO | SCHED_RESET_ON_FORK, raised_to})) _exit(4);
    if (!kernel::set_policy(other->process, {SCHED_FIFO, raised_to + 1})) _exit(5);
    std::ofstream(note) << first.value << ' ' << other->process.value;
  });
  pid_t first = 0, other = 0;
  std::ifstream(note) >> first >> other;
  await([&] { return kernel::timer_slack_of(HostPid{first}).value_or(0) == slack; });
  EXPECT_EQ(*kernel::policy_of(HostPid{first}), (kernel::Policy{SCHED_BATCH, 0}));
  EXPECT_EQ(*kernel::policy_of(HostPid{other}), (kernel::Policy{SCHED_FIFO, raised_to + 1})) << "that was its own will";
  auto adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted);
  ASSERT_EQ(adopted->size(), 1u);
  EXPECT_TRUE(adopted->front()->destroy());
}

TEST_F(PodTest, KeepsTheFilesOfAPodWhoseInitDied) {
  auto pod = run(create(shell("echo data > /data; echo said; sleep 1000")));
  ASSERT_TRUE(pod);
  await([&] { return output(*pod) == "said\n"; });
  const HostPid init = pod->init();
  ASSERT_EQ(kill(init.value, SIGKILL), 0);
  await([&] { return !runs(init); });
  pollfd watched{pod->events_fd(), POLLIN, 0};
  EXPECT_EQ(poll(&watched, 1, limit_ms), 1);
  const auto end = pod->next_end();
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().kind, ErrorKind::gone);
  pod.reset();
  const auto adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted) << adopted.error().message();
  EXPECT_TRUE(adopted->empty());
  EXPECT_TRUE(std::filesystem::exists(site.state_dir + "/lost/p-0123456789abcdef/upper/data"));
}

TEST_F(PodTest, LeavesItsFilesWhenAsked) {
  auto pod = run(create(shell("echo first; echo data > /data")));
  ASSERT_TRUE(pod);
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_TRUE(pod->destroy(true));
  EXPECT_TRUE(std::filesystem::exists(pod->upper() + "/data"));
  // When it comes back its files are what it brings; its log goes on.
  pod = run(create(shell("echo second; ls /data")));
  ASSERT_TRUE(pod);
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_EQ(output(*pod), "first\nsecond\n");
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, LimitsMemory) {
  auto spec = shell("head -c 200M /dev/zero | tail -c 200M | wc -c");
  spec.memory_limit = 32 * MiB;
  spec.cpu_limit = 0.5;
  auto pod = run(create(spec));
  ASSERT_TRUE(pod);
  const auto groups = *kernel::read_file(pod->init(), "cgroup");
  EXPECT_EQ(groups.find("godwit-here-p-"), std::string::npos) << "the init is not under the limits";
  EXPECT_GE(await_end(*pod), 0);
  EXPECT_EQ(output(*pod), "0\n") << "tail was to be killed";
  EXPECT_TRUE(pod->destroy());
}

TEST_F(PodTest, IsTornDownThoughItHasUsedUpItsShare) {
  // What one call takes is paid afterwards, at a hundredth of a processor.
  auto spec = shell("exec dd if=/dev/zero of=/dev/null bs=1G");
  spec.cpu_limit = 0.01;
  auto pod = run(create(spec));
  ASSERT_TRUE(pod);
  const HostPid first = pod->workload().processes()->front();
  await([&] {
    std::istringstream stat(*kernel::read_file(first, "stat"));
    std::string field;
    long ticks = 0;
    for (int i = 1; i <= 15 && stat >> field; ++i)
      if (i == 14 || i == 15) ticks += std::stol(field);
    return ticks * 1000 / sysconf(_SC_CLK_TCK) >= 120;  // more than twelve seconds to pay
  });
  const auto destroyed = pod->destroy();
  EXPECT_TRUE(destroyed) << destroyed.error().message();
}

TEST_F(PodTest, RefusesBadNames) {
  for (const char* name : {"", "..", "a/b", "-a", "a b"}) {
    auto spec = shell("true");
    spec.name = name;
    const auto pod = Pod::create(site, spec);
    ASSERT_FALSE(pod) << name;
    EXPECT_EQ(pod.error().kind, ErrorKind::invalid);
  }
}

TEST(LogSegments, CountWhatCannotBeWritten) {
  char pattern[] = "/tmp/godwit-log-XXXXXX";
  ASSERT_NE(mkdtemp(pattern), nullptr);
  const std::string directory = pattern;
  {
    LogWriter writer(Fd(open(pattern, O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    const Bytes ten(10, 'x');
    writer.append(FrameKind::output, ten);
    rlimit old{};
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    const rlimit small{20, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    writer.append(FrameKind::output, ten);
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_EQ(writer.lost(), 10u);
    writer.append(FrameKind::error, ten);
  }
  LogPosition position;
  const auto frames = read_log(directory, position);
  ASSERT_TRUE(frames);
  ASSERT_EQ(frames->size(), 3u);
  EXPECT_EQ((*frames)[1].kind, FrameKind::lost);
  EXPECT_EQ((*frames)[1].bytes, (Bytes{10, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ((*frames)[2].kind, FrameKind::error);
  EXPECT_TRUE(read_log(directory, position)->empty());
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace godwit::pod
