#include "node/cgroup_directory.hpp"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace godwit::node {

Result<std::string> prepare_cgroup(const std::string& configured, const std::string& node) {
  std::string path = configured;
  if (path.empty()) {
    std::ifstream mounts("/proc/self/mounts");
    for (std::string line; std::getline(mounts, line);) {
      std::istringstream fields(line);
      std::string device, mount, type;
      fields >> device >> mount >> type;
      if (type != "cgroup2") continue;
      path = mount + "/godwit/" + node;
      // Limits need the controllers handed down; without them (cgroup v1 has them) limits go there.
      for (const std::string& directory : {mount, mount + "/godwit"}) {
        std::error_code ignored;
        std::filesystem::create_directories(directory, ignored);
        for (const char* controller : {"+memory", "+cpu"})
          std::ofstream(directory + "/cgroup.subtree_control") << controller;
      }
      break;
    }
  }
  if (path.empty())
    return std::unexpected(Error{ErrorKind::refused, "no cgroup v2 hierarchy is mounted", 0,
                                 "mount -t cgroup2 none /sys/fs/cgroup/unified"});
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail(ErrorKind::failed, "make the cgroup {}: {}", path, error.message());
  return path;
}

}  // namespace godwit::node
