#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>

#include "kernel/procfs.hpp"
#include "pod/pod.hpp"
#include "pod/zygote.hpp"

namespace godwit::pod {

inline constexpr int limit_ms = 20'000;

/// A node in miniature: directories and a cgroup of its own, pods without a network.
class PodTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (geteuid() != 0) return;
    auto started = Zygote::start();
    ASSERT_TRUE(started) << started.error().message();
    zygote = std::make_unique<Zygote>(std::move(*started));
  }
  static void TearDownTestSuite() { zygote.reset(); }

  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "pods need root";
    char pattern[] = "/var/tmp/godwit-pod-test-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    base = pattern;
    site.node = "here";
    site.state_dir = base + "/state";
    site.run_dir = base + "/run";
    site.cgroup = cgroup_root() + "/godwit-test-" + std::to_string(getpid());
    site.zygote = zygote.get();
    std::filesystem::create_directories(site.state_dir);
    std::filesystem::create_directories(site.run_dir);
    ASSERT_EQ(mkdir(site.cgroup.c_str(), 0755), 0) << site.cgroup;
  }

  void TearDown() override {
    if (base.empty()) return;
    EXPECT_TRUE(!std::filesystem::exists(site.state_dir + "/pods") ||
                std::filesystem::is_empty(site.state_dir + "/pods"));
    EXPECT_TRUE(!std::filesystem::exists(site.run_dir + "/pods") || std::filesystem::is_empty(site.run_dir + "/pods"));
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) EXPECT_EQ(line.find(base), std::string::npos) << line;
    rmdir((site.cgroup + "/pods").c_str());
    EXPECT_EQ(rmdir(site.cgroup.c_str()), 0) << "a pod's cgroup is left";
    std::filesystem::remove_all(base);
  }

  static std::string cgroup_root() {
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
      std::istringstream fields(line);
      std::string skip, mount;
      fields >> skip >> skip >> skip >> skip >> mount;
      if (line.find(" - cgroup2 ") != std::string::npos) return mount;
    }
    return "/sys/fs/cgroup";
  }

  static Spec shell(const std::string& script) {
    Spec spec;
    spec.name = "p";
    spec.id = "0123456789abcdef";
    spec.hostname = "swan";
    spec.network.mac = "02:00:00:00:00:05";
    spec.program.arguments = {"/bin/sh", "-c", script};
    return spec;
  }

  std::unique_ptr<Pod> create(const Spec& spec, const std::optional<Pod::Arrival>& arrival = {}) {
    auto pod = Pod::create(site, spec, arrival);
    EXPECT_TRUE(pod) << pod.error().message();
    return pod ? std::move(*pod) : nullptr;
  }

  static std::unique_ptr<Pod> run(std::unique_ptr<Pod> pod) {
    if (!pod) return nullptr;
    auto started = pod->start(pod->spec().program);
    EXPECT_TRUE(started) << started.error().message();
    return pod;
  }

  /// How the pod has ended, as waitpid gives it; -1 when it hasn't.
  static int await_end(Pod& pod) {
    pollfd watched{pod.events_fd(), POLLIN, 0};
    EXPECT_EQ(poll(&watched, 1, limit_ms), 1) << "it hasn't ended";
    const auto end = pod.next_end();
    EXPECT_TRUE(end) << end.error().message();
    return end && *end ? **end : -1;
  }

  static std::string output(const Pod& pod, FrameKind kind = FrameKind::output) {
    LogPosition position;
    const auto frames = read_log(pod.log_directory(), position);
    EXPECT_TRUE(frames) << frames.error().message();
    std::string text;
    for (const Frame& frame : *frames)
      if (frame.kind == kind) text.append(frame.bytes.begin(), frame.bytes.end());
    return text;
  }

  /// Runs a script to its end; what it wrote to stdout.
  std::string result_of(const std::string& script) {
    auto pod = run(create(shell(script)));
    if (!pod) return "";
    EXPECT_GE(await_end(*pod), 0);
    auto text = output(*pod);
    EXPECT_TRUE(pod->destroy());
    return text;
  }

  static void await(const std::function<bool()>& condition) {
    for (int waited = 0; !condition(); ++waited) {
      ASSERT_LT(waited, limit_ms) << "what was waited for didn't happen";
      poll(nullptr, 0, 1);
    }
  }

  std::string base;
  Site site;
  static inline std::unique_ptr<Zygote> zygote;
};

inline bool runs(HostPid process) {
  const auto stat = kernel::read_stat(process);
  return stat && stat->state != 'Z';
}

inline void type(const Pod& pod, const Fd& into, const std::string& text) {
  ASSERT_EQ(write(into.get(), text.data(), text.size()), static_cast<ssize_t>(text.size())) << pod.spec().name;
}

}  // namespace godwit::pod
