#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/codec.hpp"

namespace godwit::pod {

/// Who somebody is: the same numbers on every node of a cluster, as with a shared file system.
struct User {
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;  ///< supplementary
  bool operator==(const User&) const = default;
  MSGPACK_DEFINE_MAP(uid, gid, groups)

  [[nodiscard]] bool is_root() const { return uid == 0; }
};

/// As the machine's own lists have it: "alice", or "1000". `not_found` when there is none of that name.
Result<User> user_named(const std::string& name);
/// Whether this machine would give somebody with this uid such a gid and such groups, whoever says so. An account has
/// those of the machine's own lists. A uid without an account has the gid of the same number, and none that has a name
/// here, such as "disk": those are this machine's to give.
bool has_own_groups(const User&);
/// "alice", or the number when the machine has no name for it.
std::string name_of(std::uint32_t uid);
/// The home directory; "/" when the machine knows none.
std::string home_of(std::uint32_t uid);

}  // namespace godwit::pod
