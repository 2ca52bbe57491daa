#include <linux/ioctl.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "objects/clocks.hpp"
#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

// TFD_IOC_SET_TICKS of linux/timerfd.h, which can't be included beside sys/timerfd.h (CONFIG_CHECKPOINT_RESTORE).
constexpr unsigned long set_ticks = _IOW('T', 0, std::uint64_t);
constexpr std::int64_t second = 1'000'000'000;

struct State {
  int clock = 0;
  int set_flags = 0;        ///< of the last timerfd_settime: TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
  std::int64_t expiry = 0;  ///< next expiry on `clock` as the pod reads it (ns); meaningless when not armed
  bool armed = false;
  std::int64_t interval = 0;   ///< ns; 0: once
  std::uint64_t ticks = 0;     ///< expirations that have not been read
  std::int64_t monotonic = 0;  ///< the pod's CLOCK_MONOTONIC at capture, for what runs on relative time
  int flags = 0;
  PodPid process;  ///< one that has the timer: its time namespace is the one meant
  MSGPACK_DEFINE_MAP(clock, set_flags, expiry, armed, interval, ticks, monotonic, flags, process)
};

bool matches(const Descriptor& descriptor) {
  return is_anonymous(descriptor.link, "[timerfd]");
}

struct timespec to_timespec(std::int64_t nanoseconds) {
  return {.tv_sec = nanoseconds / second, .tv_nsec = nanoseconds % second};
}
std::int64_t from_timespec(const struct timespec& time) {
  return time.tv_sec * second + time.tv_nsec;
}

/// A clock that timers count on but that can't be read by this name.
clockid_t readable(int clock) {
  if (clock == CLOCK_REALTIME_ALARM) return CLOCK_REALTIME;
  if (clock == CLOCK_BOOTTIME_ALARM) return CLOCK_BOOTTIME;
  return clock;
}

/// A relative timer on CLOCK_REALTIME isn't moved when that clock is set: the kernel counts it on CLOCK_MONOTONIC.
bool counts_on_monotonic(const State& state) {
  return readable(state.clock) == CLOCK_REALTIME && (state.set_flags & TFD_TIMER_ABSTIME) == 0;
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  State state{.flags = descriptor.flags};
  struct itimerspec setting {};
  std::string info = TRY(read_info(descriptor.fd));
  // timerfd_gettime first: it moves a periodic timer on that has expired, which fdinfo alone shows as not armed. The
  // ticks may grow between the two reads, and then belong to another remaining time: ask again.
  for (int attempt = 0; attempt < 16; ++attempt) {
    const auto before = info_number(info, "ticks");
    if (::timerfd_gettime(descriptor.fd, &setting) < 0) return fail_errno("timerfd_gettime");
    info = TRY(read_info(descriptor.fd));
    const auto ticks = info_number(info, "ticks");
    if (!ticks) return fail(ErrorKind::refused, "fdinfo of a timerfd has no ticks");
    state.ticks = *ticks;
    if (before == ticks) break;
  }
  const auto clock = info_number(info, "clockid");
  const auto set_flags = info_number(info, "settime flags", 8);
  if (!clock || !set_flags) return fail(ErrorKind::refused, "fdinfo of a timerfd has no clock or flags");
  state.clock = static_cast<int>(*clock);
  state.set_flags = static_cast<int>(*set_flags);
  if (descriptor.holders.empty()) return fail(ErrorKind::invalid, "a timerfd that no process holds");
  state.process = descriptor.holders.front().process;
  const auto process = source.host_pid(state.process);
  state.monotonic = clock_now(CLOCK_MONOTONIC) + TRY(clock_offset(process, CLOCK_MONOTONIC));
  state.interval = from_timespec(setting.it_interval);
  const std::int64_t remaining = from_timespec(setting.it_value);
  state.armed = remaining != 0;
  const clockid_t reading = readable(state.clock);
  if (state.armed)
    state.expiry = counts_on_monotonic(state) ? state.monotonic + remaining
                                              : clock_now(reading) + TRY(clock_offset(process, reading)) + remaining;
  return state;
}

Result<void> arm(const State& state, int fd, Destination& destination) {
  const clockid_t counting = counts_on_monotonic(state) ? CLOCK_MONOTONIC : readable(state.clock);
  // Our own reading of the instant: timerfd_settime takes times of the calling thread's namespace.
  const std::int64_t expiry = state.expiry - TRY(clock_offset(destination.host_pid(state.process), counting));
  struct itimerspec setting {};
  setting.it_interval = to_timespec(state.interval);
  std::uint64_t ticks = state.ticks;
  int flags = state.set_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  if ((flags & TFD_TIMER_ABSTIME) != 0) {
    setting.it_value = to_timespec(std::max<std::int64_t>(expiry, 1));
  } else {
    std::int64_t remaining = expiry - clock_now(counting);
    if (remaining <= 0 && state.interval > 0) {
      // Whole periods have passed meanwhile; the phase stays.
      const std::int64_t missed = -remaining / state.interval + 1;
      ticks += static_cast<std::uint64_t>(missed);
      remaining += missed * state.interval;
    }
    setting.it_value = to_timespec(std::max<std::int64_t>(remaining, 1));
  }
  if (::timerfd_settime(fd, flags, &setting, nullptr) < 0) return fail_errno("timerfd_settime");
  // timerfd_settime sets the ticks to 0.
  if (ticks != 0 && ::ioctl(fd, set_ticks, &ticks) < 0) return fail_errno("TFD_IOC_SET_TICKS {}", ticks);
  return {};
}

Result<Fd> build(const State& state, Destination& destination) {
  if (state.interval < 0 || state.expiry < 0) return fail(ErrorKind::invalid, "a timerfd with a negative time");
  Fd fd{::timerfd_create(state.clock, TFD_CLOEXEC)};
  if (!fd) return fail_errno("timerfd_create on clock {}", state.clock);
  if (state.armed) {
    TRY(arm(state, fd.get(), destination));
  } else {
    // Once expired or disarmed: the flags and the interval still show.
    struct itimerspec setting {};
    setting.it_interval = to_timespec(state.interval);
    const int flags = state.set_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
    if (::timerfd_settime(fd.get(), flags, &setting, nullptr) < 0) return fail_errno("timerfd_settime");
    if (state.ticks != 0 && ::ioctl(fd.get(), set_ticks, &state.ticks) < 0)
      return fail_errno("TFD_IOC_SET_TICKS {}", state.ticks);
  }
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

}  // namespace

const Kind timerfd_kind{.name = "timerfd",
                        .matches = matches,
                        .preflight = nothing_to_preflight,
                        .capture = captures<State, capture>,
                        .build = builds<State, build>,
                        .attach = nothing_to_attach,
                        .open = nothing_to_open};

}  // namespace godwit::objects
