#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "image/codec.hpp"

namespace godwit::pod {

/// A thread that is in SCHED_FIFO for a moment, and what it is otherwise.
struct RaisedThread {
  pid_t tid = 0;      ///< as the pod knows it
  int raised_to = 0;  ///< priority in SCHED_FIFO
  int policy = 0;     ///< SCHED_*, with SCHED_RESET_ON_FORK
  int priority = 0;
  std::uint64_t timer_slack = 0;  ///< ns; 0: a real-time thread has none
  MSGPACK_DEFINE_MAP(tid, raised_to, policy, priority, timer_slack)
};

/// Makes them what they are otherwise, from inside the pod. One that isn't what it was raised to, any more or yet, is
/// left alone: it knows what it wants.
void let_down(const std::vector<RaisedThread>&);

}  // namespace godwit::pod
