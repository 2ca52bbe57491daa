#include "base/fault.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

/// The test daemon's fault points. The file /run/godwit/fault holds "POINT:ACTION", one in a line, or isn't there; it
/// is read anew at every point. The environment's GODWIT_FAULT is one more, for as long as the daemon lives. Actions:
///   kill    the daemon dies at once (SIGKILL)
///   wait    makes fault.reached beside it and goes on when fault.go is there, after a minute at most
/// The file /run/godwit/clock holds seconds by which this daemon's wall clock is wrong.
namespace godwit::fault {
namespace {

const std::string file_name = "/run/godwit/fault";

time_t clock_error() {
  char text[32] = {};
  const int file = ::open("/run/godwit/clock", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  (void)!::read(file, text, sizeof text - 1);
  ::close(file);
  return std::strtol(text, nullptr, 10);
}

/// What is to happen at this point; empty: nothing.
std::string armed(std::string_view point) {
  const auto action_at = [point](std::string_view line) -> std::string_view {
    const bool meant = line.starts_with(point) && line.substr(point.size()).starts_with(':');
    return meant ? line.substr(point.size() + 1) : std::string_view();
  };
  std::string line;
  for (std::ifstream file(file_name); std::getline(file, line);)
    if (const auto action = action_at(line); !action.empty()) return std::string(action);
  const char* lasting = std::getenv("GODWIT_FAULT");
  return std::string(lasting == nullptr ? std::string_view() : action_at(lasting));
}

void wait_here() {
  const int reached = ::open((file_name + ".reached").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  // What is reached again and again waits only the first time.
  if (reached < 0) return;
  ::close(reached);
  for (int i = 0; i < 60'000 && ::access((file_name + ".go").c_str(), F_OK) != 0; ++i) ::usleep(1000);
}

}  // namespace

void reach(std::string_view point) {
  const std::string action = armed(point);
  if (action == "kill") ::kill(::getpid(), SIGKILL);
  if (action == "wait") wait_here();
}

}  // namespace godwit::fault

// They stand before the C library's, for its other libraries too: certificates are looked at by time(). The steady
// clock never jumps.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const auto outcome = static_cast<int>(::syscall(SYS_clock_gettime, clock, time));
  if (outcome == 0 && clock == CLOCK_REALTIME) time->tv_sec += godwit::fault::clock_error();
  return outcome;
}

extern "C" time_t time(time_t* into) noexcept {
  timespec now{};
  (void)clock_gettime(CLOCK_REALTIME, &now);
  if (into != nullptr) *into = now.tv_sec;
  return now.tv_sec;
}
