#pragma once

#include <string>

#include "base/result.hpp"
#include "pod/user.hpp"

/// In whose name a request of the API is made.
namespace godwit::node {

/// Header in which daemons say it to each other.
inline constexpr const char* user_header = "x-godwit-user";

/// Who is at the other end of a Unix socket: SO_PEERCRED and SO_PEERGROUPS, unix(7).
Result<pod::User> caller_of(int socket);

/// "uid:gid:group,group".
std::string encode_user(const pod::User&);
Result<pod::User> decode_user(const std::string&);

}  // namespace godwit::node
