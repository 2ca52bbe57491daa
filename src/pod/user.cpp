#include "pod/user.hpp"

#include <grp.h>
#include <pwd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace godwit::pod {
namespace {

struct Entry {
  std::string name, home;
  uid_t uid;
  gid_t gid;
};

template <typename Look>
std::optional<Entry> look_up(const Look& look) {
  passwd entry{};
  passwd* found = nullptr;
  std::array<char, 16 * 1024> buffer;
  if (look(&entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) return {};
  return Entry{found->pw_name, found->pw_dir, found->pw_uid, found->pw_gid};
}

std::optional<Entry> by_number(std::uint32_t uid) {
  return look_up([&](auto... rest) { return ::getpwuid_r(uid, rest...); });
}

bool has_name(std::uint32_t gid) {
  group entry{};
  group* found = nullptr;
  std::array<char, 16 * 1024> buffer;
  // What can't be read, or is too long, is there.
  return ::getgrgid_r(gid, &entry, buffer.data(), buffer.size(), &found) != 0 || found != nullptr;
}

}  // namespace

Result<User> user_named(const std::string& name) {
  std::uint32_t number = 0;
  const auto [stop, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const bool is_number = error == std::errc{} && stop == name.data() + name.size();
  const auto entry =
      is_number ? by_number(number) : look_up([&](auto... rest) { return ::getpwnam_r(name.c_str(), rest...); });
  if (!entry && is_number) return User{number, number, {}};
  if (!entry) return fail(ErrorKind::not_found, "no user named '{}' on this machine", name);
  User user{entry->uid, entry->gid, {}};
  std::array<gid_t, 1024> groups;
  int count = groups.size();
  if (::getgrouplist(entry->name.c_str(), entry->gid, groups.data(), &count) >= 0)
    user.groups.assign(groups.begin(), groups.begin() + count);
  return user;
}

bool has_own_groups(const User& user) {
  const auto known = user_named(std::to_string(user.uid));
  if (!known) return false;
  // An account is in its first group at least.
  if (known->groups.empty())
    return user.gid == user.uid && !has_name(user.gid) && std::ranges::none_of(user.groups, has_name);
  const auto own = [&](std::uint32_t gid) { return std::ranges::count(known->groups, gid) > 0; };
  return own(user.gid) && std::ranges::all_of(user.groups, own);
}

std::string name_of(std::uint32_t uid) {
  const auto entry = by_number(uid);
  return entry ? entry->name : std::to_string(uid);
}

std::string home_of(std::uint32_t uid) {
  const auto entry = by_number(uid);
  return entry && !entry->home.empty() ? entry->home : "/";
}

}  // namespace godwit::pod
