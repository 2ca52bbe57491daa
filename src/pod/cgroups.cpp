#include "pod/cgroups.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>

#include "base/fd.hpp"
#include "pod/pod.hpp"

namespace godwit::pod {

namespace {

constexpr int period_us = 100'000;
constexpr std::chrono::seconds patience{10};

Result<std::string> read_text(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno("open {}", path);
  std::string text;
  char part[4096];
  ssize_t got = 0;
  while ((got = ::read(file.get(), part, sizeof part)) > 0) text.append(part, static_cast<std::size_t>(got));
  if (got < 0) return fail_errno("read {}", path);
  return text;
}

Result<void> write_text(const std::string& path, const std::string& text) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno("open {}", path);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno("write \"{}\" to {}", text, path);
  return {};
}

Result<void> make_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return fail_errno("mkdir {}", path);
  return {};
}

bool has_word(const std::string& text, const std::string& word, const char* separators) {
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const auto end = std::min(text.find_first_of(separators, begin), text.size());
    if (text.compare(begin, end - begin, word) == 0) return true;
    begin = end + 1;
  }
  return false;
}

/// Our own directory in the v1 hierarchy of a controller: the pod's goes below it, so that limits on us hold for it.
Result<std::string> v1_directory(const std::string& controller) {
  std::string root;
  std::string mount;
  std::istringstream mounts(TRY(read_text("/proc/self/mountinfo")));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string skip, here_root, here_mount, type, source, options;
    fields >> skip >> skip >> skip >> here_root >> here_mount;
    while (fields >> skip && skip != "-") {
    }
    fields >> type >> source >> options;
    if (type != "cgroup" || !has_word(options, controller, ",")) continue;
    root = here_root;
    mount = here_mount;
  }
  if (mount.empty()) return fail(ErrorKind::not_found, "no cgroup v1 hierarchy with the {} controller", controller);
  std::istringstream own(TRY(read_text("/proc/self/cgroup")));
  for (std::string line; std::getline(own, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos || !has_word(line.substr(first + 1, second - first - 1), controller, ",")) continue;
    std::string path = line.substr(second + 1);
    if (root != "/" && path.starts_with(root)) path.erase(0, root.size());
    if (!path.starts_with('/')) path.insert(0, "/");
    while (path.ends_with('/')) path.pop_back();
    return mount + path;
  }
  return mount;
}

bool v2_has(const std::string& directory, const std::string& controller) {
  const auto controllers = read_text(directory + "/cgroup.controllers");
  return controllers && has_word(*controllers, controller, " \n");
}

Result<void> enable(const std::string& directory, const std::string& controller) {
  auto outcome = write_text(directory + "/cgroup.subtree_control", "+" + controller);
  if (!outcome && outcome.error().code == EBUSY)
    outcome.error().hint = "the directory has processes of its own; give godwitd a cgroup that it isn't in itself";
  return outcome;
}

/// One limit of a pod, and how each version of cgroups says it.
struct Limit {
  const char* controller;
  std::vector<std::pair<const char*, std::string>> v1;
  std::pair<const char*, std::string> v2;
};

std::vector<Limit> limits_of(const Spec& spec) {
  std::vector<Limit> limits;
  if (spec.memory_limit > 0) {
    const auto bytes = std::to_string(spec.memory_limit);
    limits.push_back({"memory", {{"memory.limit_in_bytes", bytes}}, {"memory.max", bytes}});
  }
  if (spec.cpu_limit > 0) {
    const auto quota = std::max(1000L, static_cast<long>(spec.cpu_limit * period_us));
    limits.push_back({"cpu",
                      {{"cpu.cfs_period_us", std::to_string(period_us)}, {"cpu.cfs_quota_us", std::to_string(quota)}},
                      {"cpu.max", fmt::format("{} {}", quota, period_us)}});
  }
  return limits;
}

/// Removes an empty directory of cgroups; the processes of a dying one take a moment to leave.
Result<void> remove_directory(const std::string& path) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (rmdir(path.c_str()) != 0) {
    if (errno == ENOENT) return {};
    if (errno != EBUSY || std::chrono::steady_clock::now() > deadline) return fail_errno("rmdir {}", path);
    poll(nullptr, 0, 1);
  }
  return {};
}

Result<void> make_v1(const Limit& limit, const std::string& name, std::vector<std::string>& made) {
  auto parent = v1_directory(limit.controller);
  if (!parent) {
    parent.error().kind = ErrorKind::refused;
    parent.error().hint = fmt::format("the pod's limit needs the {} controller, of cgroup v1 or v2", limit.controller);
    return std::unexpected(parent.error());
  }
  const std::string directory = *parent + "/" + name;
  TRY(remove_directory(directory));
  TRY(make_directory(directory));
  made.push_back(directory);
  for (const auto& [file, value] : limit.v1) TRY(write_text(directory + "/" + file, value));
  return {};
}

}  // namespace

Result<PodCgroups> make_cgroups(const std::string& site, const std::string& node, const Spec& spec) {
  if (site.empty()) return fail(ErrorKind::invalid, "no cgroup v2 directory is configured");
  PodCgroups cgroups;
  cgroups.pod = fmt::format("{}/pods/{}", site, spec.name);
  TRY(remove_cgroups(cgroups));
  TRY(make_directory(site + "/pods"));
  const auto make = [&]() -> Result<void> {
    TRY(make_directory(cgroups.pod));
    TRY(make_directory(cgroups.init()));
    TRY(make_directory(cgroups.work()));
    for (const Limit& limit : limits_of(spec)) {
      if (v2_has(site, limit.controller)) {
        TRY(enable(site, limit.controller));
        TRY(enable(site + "/pods", limit.controller));
      } else {
        TRY(make_v1(limit, fmt::format("godwit-{}-{}-{}", node, spec.name, spec.id), cgroups.limits));
      }
    }
    return {};
  };
  auto made = make();
  if (!made) {
    (void)remove_cgroups(cgroups);
    return std::unexpected(std::move(made).error());
  }
  return cgroups;
}

Result<void> set_limits(const PodCgroups& cgroups, const Spec& spec) {
  for (const Limit& limit : limits_of(spec)) {
    if (!v2_has(cgroups.pod, limit.controller)) continue;
    TRY(enable(cgroups.pod, limit.controller));
    TRY(write_text(cgroups.work() + "/" + limit.v2.first, limit.v2.second));
  }
  return {};
}

void lift_limits(const PodCgroups& cgroups) {
  // Where there is none there is nothing to lift.
  (void)write_text(cgroups.work() + "/cpu.max", "max");
  for (const auto& directory : cgroups.limits) (void)write_text(directory + "/cpu.cfs_quota_us", "-1");
}

Result<void> remove_cgroups(const PodCgroups& cgroups) {
  Result<void> outcome;
  lift_limits(cgroups);
  for (const auto& directory : {cgroups.work(), cgroups.init(), cgroups.pod}) {
    if (access(directory.c_str(), F_OK) != 0) continue;
    (void)write_text(directory + "/cgroup.kill", "1");
    auto removed = remove_directory(directory);
    if (!removed && outcome) outcome = std::move(removed);
  }
  for (const auto& directory : cgroups.limits) {
    auto removed = remove_directory(directory);
    if (!removed && outcome) outcome = std::move(removed);
  }
  return outcome;
}

Result<bool> Cgroup::frozen() const {
  return has_word(TRY(read_text(path_ + "/cgroup.events")), "frozen 1", "\n");
}

Result<void> Cgroup::freeze() {
  const std::string events_path = path_ + "/cgroup.events";
  const Fd events(::open(events_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!events) return fail_errno("open {}", events_path);
  TRY(write_text(path_ + "/cgroup.freeze", "1"));
  const auto deadline = std::chrono::steady_clock::now() + patience;
  for (;;) {
    char text[256] = {};
    if (pread(events.get(), text, sizeof text - 1, 0) < 0) return fail_errno("read {}", events_path);
    if (has_word(text, "frozen 1", "\n")) return {};
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd change{events.get(), POLLPRI, 0};
    if (left.count() <= 0 || poll(&change, 1, static_cast<int>(left.count())) == 0) {
      (void)thaw();
      return fail(ErrorKind::timeout, "{} didn't freeze in {} seconds", path_, patience.count());
    }
  }
}

Result<void> Cgroup::thaw() {
  return write_text(path_ + "/cgroup.freeze", "0");
}

Result<std::vector<HostPid>> Cgroup::processes() const {
  std::vector<HostPid> all;
  std::istringstream lines(TRY(read_text(path_ + "/cgroup.procs")));
  for (pid_t pid = 0; lines >> pid;) all.push_back(HostPid{pid});
  return all;
}

Result<void> Cgroup::add(HostPid process) {
  TRY(write_text(path_ + "/cgroup.procs", std::to_string(process.value)));
  for (const auto& directory : limits_) TRY(write_text(directory + "/cgroup.procs", std::to_string(process.value)));
  return {};
}

Result<void> Cgroup::kill() {
  return write_text(path_ + "/cgroup.kill", "1");
}

}  // namespace godwit::pod
