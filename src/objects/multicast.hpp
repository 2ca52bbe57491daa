#pragma once

#include "objects/socket_options.hpp"

/// The multicast groups that a socket has joined. The kernel tells them only to who asks group by group.
namespace godwit::objects {

struct Membership {
  int family = 0;
  std::string group;  ///< address
  std::uint32_t interface = 0;
  bool exclude = true;               ///< all but `sources`; else only these
  std::vector<std::string> sources;  ///< addresses
  MSGPACK_DEFINE_MAP(family, group, interface, exclude, sources)
};

Result<std::vector<Membership>> read_memberships(const Descriptor&, int family, Source&);
Result<void> join_groups(int fd, const std::vector<Membership>&);

}  // namespace godwit::objects
