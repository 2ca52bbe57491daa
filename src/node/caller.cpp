#include "node/caller.hpp"

#include <fmt/ranges.h>
#include <sys/socket.h>

#include <charconv>

namespace godwit::node {
namespace {

constexpr std::size_t most_groups = 65536;  // NGROUPS_MAX

/// Takes one number off the front of `text`.
bool take(std::string_view& text, std::uint32_t& number) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
  return error == std::errc{};
}

bool take(std::string_view& text, char separator) {
  if (!text.starts_with(separator)) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

Result<pod::User> caller_of(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return fail_errno("ask who is calling");
  pod::User user{peer.uid, peer.gid, {}};
  socklen_t bytes = 0;
  // Too small on purpose: says how much it is.
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, nullptr, &bytes) != 0 && errno != ERANGE)
    return fail_errno("ask for the groups of who is calling");
  if (bytes > most_groups * sizeof(gid_t)) return fail(ErrorKind::invalid, "a caller in too many groups");
  user.groups.resize(bytes / sizeof(gid_t));
  if (bytes > 0 && ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, user.groups.data(), &bytes) != 0)
    return fail_errno("ask for the groups of who is calling");
  return user;
}

std::string encode_user(const pod::User& user) {
  return fmt::format("{}:{}:{}", user.uid, user.gid, fmt::join(user.groups, ","));
}

Result<pod::User> decode_user(const std::string& text) {
  const auto malformed = [&] { return fail(ErrorKind::invalid, "{} '{}' is not uid:gid:groups", user_header, text); };
  pod::User user;
  std::string_view rest = text;
  if (!take(rest, user.uid) || !take(rest, ':') || !take(rest, user.gid) || !take(rest, ':')) return malformed();
  while (!rest.empty()) {
    if (!user.groups.empty() && !take(rest, ',')) return malformed();
    std::uint32_t group = 0;
    if (!take(rest, group) || user.groups.size() == most_groups) return malformed();
    user.groups.push_back(group);
  }
  return user;
}

}  // namespace godwit::node
