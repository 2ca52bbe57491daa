#include "pod/raised_threads.hpp"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <string>

#include "base/fd.hpp"

namespace godwit::pod {

namespace {

bool is_raised(const RaisedThread& thread) {
  sched_param now{};
  const int policy = ::sched_getscheduler(thread.tid);
  return policy >= 0 && (policy & ~SCHED_RESET_ON_FORK) == SCHED_FIFO && ::sched_getparam(thread.tid, &now) == 0 &&
         now.sched_priority == thread.raised_to;
}

}  // namespace

void let_down(const std::vector<RaisedThread>& threads) {
  for (const auto& thread : threads) {
    if (!is_raised(thread)) continue;
    sched_param before{};
    before.sched_priority = thread.priority;
    if (::sched_setscheduler(thread.tid, thread.policy, &before) != 0 || thread.timer_slack == 0) continue;
    const Fd file(::open(fmt::format("/proc/{}/timerslack_ns", thread.tid).c_str(), O_WRONLY | O_CLOEXEC));
    const std::string slack = std::to_string(thread.timer_slack);
    if (file) (void)!::write(file.get(), slack.data(), slack.size());
  }
}

}  // namespace godwit::pod
