#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "cli/playground_parts.hpp"

namespace godwit::cli::playground {

namespace fs = std::filesystem;

namespace {

constexpr const char* directory_name = "godwit-playground";

/// One write to a file of the kernel's, without its errors: what isn't there isn't needed.
bool poke(const std::string& path, const std::string& text) {
  Fd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return file && write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

/// What a v1 hierarchy is called: the controllers or the name among its mount options.
std::string v1_options(const std::string& all) {
  std::string chosen;
  std::istringstream options(all);
  for (std::string option; std::getline(options, option, ',');)
    if (option != "rw" && option != "ro" && option != "xattr" && option != "clone_children" &&
        !option.starts_with("release_agent"))
      chosen += (chosen.empty() ? "" : ",") + option;
  return chosen;
}

/// Controllers to own cgroup, from /proc/self/cgroup.
std::map<std::string, std::string> own_cgroups() {
  std::map<std::string, std::string> own;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second != std::string::npos) own[line.substr(first + 1, second - first - 1)] = line.substr(second + 1);
  }
  return own;
}

/// In v1 the playground stays within the limits of whoever makes it. In v2 that isn't possible: a cgroup with processes
/// can't hand controllers on.
std::string parent_of(const Hierarchy& hierarchy) {
  return hierarchy.v2 || hierarchy.own == "/" ? hierarchy.mount : hierarchy.mount + hierarchy.own;
}

/// A v1 cpu cgroup under RT_GROUP_SCHED has no real-time share of its own, and godwitd would be refused SCHED_FIFO.
bool unusable(const Hierarchy& hierarchy) {
  std::error_code error;
  return !hierarchy.v2 && fs::exists(parent_of(hierarchy) + "/cpu.rt_runtime_us", error);
}

bool is_v2(const std::string& directory) {
  std::error_code error;
  return fs::exists(directory + "/cgroup.controllers", error);
}

void hand_on_controllers(const std::string& directory) {
  std::istringstream controllers(read_file(directory + "/cgroup.controllers").value_or(""));
  for (std::string controller; controllers >> controller;)
    poke(directory + "/cgroup.subtree_control", "+" + controller);
}

/// A new v1 cpuset is empty, and nothing can be moved into it.
void fill_cpuset(const std::string& directory) {
  for (const char* file : {"/cpuset.cpus", "/cpuset.mems"})
    if (const auto value = read_file(fs::path(directory).parent_path().string() + file)) poke(directory + file, *value);
}

bool make(const std::string& directory) {
  if (mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) return false;
  fill_cpuset(directory);
  return true;
}

bool remove_tree(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> below;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (it->is_directory(error)) below.push_back(it->path());
  for (const auto& path : below) remove_tree(path);
  return rmdir(directory.c_str()) == 0 || errno == ENOENT;
}

}  // namespace

Result<std::vector<Hierarchy>> hierarchies() {
  std::vector<Hierarchy> found;
  const auto own = own_cgroups();
  std::ifstream mounts("/proc/self/mountinfo");
  if (!mounts) return fail_errno("read /proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const auto separator = line.find(" - ");
    if (separator == std::string::npos) continue;
    std::istringstream head(line.substr(0, separator)), tail(line.substr(separator + 3));
    std::string id, parent, device, root, mount, type, source, options;
    head >> id >> parent >> device >> root >> mount;
    tail >> type >> source >> options;
    if (type != "cgroup" && type != "cgroup2") continue;
    Hierarchy hierarchy{.mount = mount, .v2 = type == "cgroup2"};
    if (!hierarchy.v2) hierarchy.options = v1_options(options);
    const auto mine = own.find(hierarchy.options);
    if (mine != own.end()) hierarchy.own = mine->second;
    std::error_code error;
    if (!hierarchy.own.empty() && fs::exists(parent_of(hierarchy), error)) found.push_back(hierarchy);
  }
  return found;
}

Result<std::vector<std::string>> plan_cgroups(const std::string& name) {
  std::vector<std::string> planned;
  for (const auto& hierarchy : TRY(hierarchies()))
    if (!unusable(hierarchy)) planned.push_back(fmt::format("{}/{}/{}", parent_of(hierarchy), directory_name, name));
  return planned;
}

Result<void> create_cgroups(const State& state) {
  for (const auto& directory : state.cgroups) {
    const std::string common = fs::path(directory).parent_path();
    const std::string parent = fs::path(common).parent_path();
    const bool v2 = is_v2(parent);
    if (v2) hand_on_controllers(parent);
    if (!make(common)) return fail_errno("make the cgroup {}", common);
    if (v2) hand_on_controllers(common);
    if (!make(directory)) return fail_errno("make the cgroup {}", directory);
    if (v2) hand_on_controllers(directory);
    for (const auto& host : state.hosts) {
      const std::string of_host = directory + "/" + host.name;
      if (!make(of_host)) return fail_errno("make the cgroup {}", of_host);
      if (!v2) continue;
      // init: PID 1; exec: commands; godwitd, etcd: what the service manager would give them.
      for (const char* leaf : {"/init", "/exec", "/godwitd", "/etcd"})
        if (!make(of_host + leaf)) return fail_errno("make the cgroup {}{}", of_host, leaf);
    }
  }
  return {};
}

Result<void> join_cgroups(const State& state, const std::string& host, const std::string& leaf) {
  for (const auto& directory : state.cgroups) {
    std::string of_host = directory + "/" + host;
    const bool v2 = is_v2(of_host);
    if (v2 && !leaf.empty()) of_host += "/" + leaf;
    if (!poke(of_host + "/cgroup.procs", "0")) return fail_errno("join the cgroup {}", of_host);
    // Now that nothing is in the host's own cgroup it can hand its controllers on.
    if (v2 && leaf == "init") hand_on_controllers(directory + "/" + host);
  }
  return {};
}

Result<void> remove_cgroups(const State& state) {
  for (const auto& directory : state.cgroups) {
    poke(directory + "/cgroup.kill", "1");
    // Processes that were killed are in their cgroup until the kernel has taken them apart.
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!remove_tree(directory)) {
      if (std::chrono::steady_clock::now() > end) return fail_errno("remove the cgroup {}", directory);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    rmdir(fs::path(directory).parent_path().c_str());  // the last playground's
  }
  return {};
}

}  // namespace godwit::cli::playground
