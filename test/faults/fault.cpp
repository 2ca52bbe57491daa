#include "base/fault.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <string>

/// The test daemon's fault points. The file /run/godwit/fault holds "POINT:ACTION", or isn't there; it is read anew at
/// every point. Actions:
///   kill    the daemon dies at once (SIGKILL)
///   wait    makes fault.reached beside it and goes on when fault.go is there, after a minute at most
namespace godwit::fault {
namespace {

const std::string file_name = "/run/godwit/fault";

std::string armed() {
  std::string line;
  std::ifstream file(file_name);
  std::getline(file, line);
  return line;
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
  const std::string line = armed();
  const auto colon = line.find(':');
  if (colon == std::string::npos || line.compare(0, colon, point) != 0) return;
  const std::string action = line.substr(colon + 1);
  if (action == "kill") ::kill(::getpid(), SIGKILL);
  if (action == "wait") wait_here();
}

}  // namespace godwit::fault
