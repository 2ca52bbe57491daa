#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>

namespace godwit {

/// A process or thread as this node's daemon sees it (its own pid namespace).
struct HostPid {
  pid_t value = 0;
  auto operator<=>(const HostPid&) const = default;
};

/// A process or thread as the pod sees it. The same before and after a move.
struct PodPid {
  pid_t value = 0;
  auto operator<=>(const PodPid&) const = default;
};

/// An address in another process. Never dereferenced here, so never a pointer.
using RemoteAddress = std::uint64_t;

inline constexpr std::uint64_t page_size = 4096;

}  // namespace godwit
