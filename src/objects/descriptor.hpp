#pragma once

#include <sys/stat.h>

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"

/// What several kinds need to do with a descriptor of ours.
namespace godwit::objects {

/// An inode within the pod as it was at the source. Only ever compared.
struct InodeKey {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  auto operator<=>(const InodeKey&) const = default;
  MSGPACK_DEFINE_MAP(device, inode)
};
[[nodiscard]] inline InodeKey inode_key(const struct stat& status) {
  return {status.st_dev, status.st_ino};
}

/// A description of its own for the same inode: open("/proc/self/fd/N", flags). Works on any thread, whatever root it
/// has, and on files without a name; not on anonymous inodes and sockets.
Result<Fd> reopen(int fd, int flags);

/// fdinfo of a descriptor of ours.
Result<std::string> read_info(int fd);

/// What follows "key:" (or "key " for lines like "tfd: 5 events:") in a text of "key:\tvalue" parts, up to white space.
[[nodiscard]] std::optional<std::string_view> info_field(std::string_view text, std::string_view key);
/// The same as a number; nullopt also when it isn't one.
[[nodiscard]] std::optional<std::uint64_t> info_number(std::string_view text, std::string_view key, int base = 10);

/// F_SETFL with those of `flags` that can be changed on an open description (O_APPEND, O_NONBLOCK, O_DIRECT,
/// O_NOATIME). O_ASYNC is left to apply_common.
Result<void> set_status_flags(int fd, int flags);

/// Flags of F_GETFL that open(2) takes again: the access mode and what stays with a description.
[[nodiscard]] int open_flags(int flags);

/// True when the descriptor is an anonymous inode of this class: "[eventfd]", "[timerfd]" …
[[nodiscard]] bool is_anonymous(const std::string& link, std::string_view name);

}  // namespace godwit::objects
