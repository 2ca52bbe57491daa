#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"

/// A pod is rebuilt by root, and may be somebody else's: what its image names is opened for it only when its user could
/// open it too.
namespace godwit::objects {

/// Whose permissions count. Of a thread of ours, not of the process.
struct Opener {
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;
};

/// While it lives, the calling thread meets file permissions as this user does (setfsuid(2), credentials(7)).
class AsOpener {
 public:
  static Result<AsOpener> begin(const Opener&);
  ~AsOpener();
  AsOpener(AsOpener&& other) noexcept
      : active_(std::exchange(other.active_, false)), groups_(std::move(other.groups_)) {}
  AsOpener& operator=(AsOpener&&) = delete;

 private:
  explicit AsOpener(std::vector<std::uint32_t> groups) : groups_(std::move(groups)) {}
  bool active_ = true;
  std::vector<std::uint32_t> groups_;
};

/// Whether `opener` could open `path` with `flags` (open(2)), or owns it and so could let itself; what is only executed
/// is as good as read. `refused` says who may not. Everything is allowed to nobody's, that is, root's pods.
Result<void> check_permission(const Opener* opener, const std::string& path, int flags);

}  // namespace godwit::objects
