#include "objects/permission.hpp"

#include <fcntl.h>
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit::objects {
namespace {

/// setgroups(2) itself is for one thread; the library's is for all.
bool set_groups_of_thread(const std::vector<std::uint32_t>& groups) {
  return ::syscall(SYS_setgroups, groups.size(), groups.data()) == 0;
}

int mode_for(int flags) {
  if ((flags & O_PATH) != 0) return F_OK;
  switch (flags & O_ACCMODE) {
    case O_RDONLY:
      return R_OK;
    case O_WRONLY:
      return W_OK;
    default:
      return R_OK | W_OK;
  }
}

bool accessible(const std::string& path, int mode) {
  return ::faccessat(AT_FDCWD, path.c_str(), mode, AT_EACCESS) == 0;
}

}  // namespace

Result<AsOpener> AsOpener::begin(const Opener& opener) {
  std::vector<gid_t> before(static_cast<std::size_t>(std::max(0, ::getgroups(0, nullptr))));
  if (::getgroups(static_cast<int>(before.size()), before.data()) < 0) return fail_errno("getgroups");
  AsOpener guard({before.begin(), before.end()});
  if (!set_groups_of_thread(opener.groups)) return fail_errno("setgroups");
  ::setfsgid(opener.gid);
  ::setfsuid(opener.uid);
  // They say nothing of themselves; asked for the impossible they tell what is so.
  if (::setfsuid(~0U) != static_cast<int>(opener.uid)) return fail(ErrorKind::failed, "setfsuid {}", opener.uid);
  return guard;
}

AsOpener::~AsOpener() {
  if (!active_) return;
  ::setfsuid(0);
  ::setfsgid(0);
  (void)set_groups_of_thread(groups_);
}

Result<void> check_permission(const Opener* opener, const std::string& path, int flags) {
  if (opener == nullptr) return {};
  const int mode = mode_for(flags);
  {
    const auto as = TRY(AsOpener::begin(*opener));
    if (accessible(path, mode) || (mode == R_OK && accessible(path, X_OK))) return {};
  }
  struct stat status {};
  // What isn't there is for the open to say.
  if (::stat(path.c_str(), &status) != 0 || status.st_uid == opener->uid) return {};
  return std::unexpected(Error{ErrorKind::refused,
                               fmt::format("user {} may not {} {} here", opener->uid,
                                           mode == F_OK         ? "reach"
                                           : (mode & W_OK) != 0 ? "write"
                                                                : "read",
                                           path),
                               0, "give it the same permissions on both nodes"});
}

}  // namespace godwit::objects
