#pragma once

#include <csignal>
#include <vector>

#include "image/codec.hpp"
#include "kernel/remote.hpp"
#include "objects/pod_clock.hpp"

namespace godwit::objects {

/// A POSIX timer (timer_create). Times in ns.
struct PosixTimer {
  std::int32_t id = 0;
  std::int32_t clock = 0;
  std::int32_t notify = 0;  ///< SIGEV_*
  std::int32_t signal = 0;
  std::uint64_t value = 0;  ///< sigev_value
  PodPid thread;            ///< with SIGEV_THREAD_ID
  std::int64_t left = 0;    ///< until it next fires; 0: not armed
  std::int64_t interval = 0;
  std::int64_t overruns =
      -1;  ///< so many periods have passed since its signal was queued, which nobody has taken yet; -1: none is
  MSGPACK_DEFINE_MAP(id, clock, notify, signal, value, thread, left, interval, overruns)
};

/// One of ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF. Times in µs.
struct IntervalTimer {
  std::int64_t left = 0, interval = 0;
  MSGPACK_DEFINE_MAP(left, interval)
};

struct Timers {
  std::vector<PosixTimer> posix;
  std::vector<IntervalTimer> interval;
  std::int64_t taken = 0;  ///< when `left` was read, on the pod's clock, ns
  MSGPACK_DEFINE_MAP(posix, interval, taken)
};

class TimersCapture {
 public:
  /// Reads /proc/PID/timers.
  Result<void> look(HostPid process);
  void ask(kernel::Batch&);
  Result<Timers> take(const kernel::Batch&, const PodClock&);

 private:
  void count_overruns();
  HostPid process_;
  Timers timers_;
  RemoteAddress settings_ = 0;
  std::vector<kernel::Batch::Call> calls_;
};

/// The threads that timers signal must exist. Wall-clock timers lose the time since they were read; timers of CPU time
/// don't.
void restore_timers(kernel::Batch&, const Timers&, const PodClock&);

/// True of a queued signal that its timer, once restored, queues again by itself, with the overruns it had.
[[nodiscard]] bool comes_again(const Timers&, const siginfo_t&);

}  // namespace godwit::objects
