#include "objects/kinds.hpp"

namespace godwit::objects {

const std::vector<const Kind*>& kinds() {
  // The init's streams come first: they are pipes and terminals too. Files come last: they take what has a path.
  // clang-format off
  static const std::vector<const Kind*> all{
      &stream_kind,
      &device_kind,
      &pipe_kind,
      &eventfd_kind,
      &timerfd_kind,
      &signalfd_kind,
      &epoll_kind,
      &pidfd_kind,
      &tcp_kind,
      &udp_kind,
      &unix_kind,
      &netlink_kind,
      &memfd_kind,
      &file_kind,
  };
  // clang-format on
  return all;
}

const Kind* kind_of(const Descriptor& descriptor) {
  for (const Kind* kind : kinds())
    if (kind->matches(descriptor)) return kind;
  return nullptr;
}

const Kind* kind_named(std::string_view name) {
  for (const Kind* kind : kinds())
    if (kind->name == name) return kind;
  return nullptr;
}

}  // namespace godwit::objects
