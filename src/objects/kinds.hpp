#pragma once

#include "objects/kind.hpp"

/// Every kind, declared: one line each. Their order is in kinds.cpp.
namespace godwit::objects {

extern const Kind stream_kind;
extern const Kind device_kind;
extern const Kind pipe_kind;
extern const Kind eventfd_kind;
extern const Kind timerfd_kind;
extern const Kind signalfd_kind;
extern const Kind epoll_kind;
extern const Kind pidfd_kind;
extern const Kind memfd_kind;
extern const Kind tcp_kind;
extern const Kind udp_kind;
extern const Kind unix_kind;
extern const Kind netlink_kind;
extern const Kind file_kind;

}  // namespace godwit::objects
