#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli/playground_parts.hpp"

namespace godwit::cli::playground {

namespace fs = std::filesystem;

// What another version has written down lacks some of it, perhaps: `down` has to read it all the same.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Host, name, node, pid, start, address4, address6, daemon, daemon_start,
                                                store_address, store, store_start)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(State, name, complete, godwitd, key, mtu, wire, wire_start, hosts,
                                                cgroups)

const Host* State::find(const std::string& host) const {
  for (const auto& candidate : hosts)
    if (candidate.name == host) return &candidate;
  return nullptr;
}

std::string base_directory() {
  const char* chosen = std::getenv("GODWIT_PLAYGROUND_DIR");
  return chosen != nullptr && *chosen != '\0' ? chosen : "/var/lib/godwit-playground";
}

std::string directory_of(const std::string& name) {
  return base_directory() + "/" + name;
}

std::string directory_of(const std::string& name, const std::string& host) {
  return directory_of(name) + "/" + host;
}

Result<void> write_file(const std::string& path, const std::string& content, unsigned mode) {
  const std::string fresh = path + ".new";
  Fd file(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!file) return fail_errno("write {}", fresh);
  if (write(file.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size()))
    return fail_errno("write {}", fresh);
  if (rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("write {}", path);
  return {};
}

std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

Result<void> save(const State& state) {
  return write_file(directory_of(state.name) + "/playground.json", nlohmann::json(state).dump(2) + "\n", 0600);
}

Result<State> load(const std::string& name) {
  const auto text = read_file(directory_of(name) + "/playground.json");
  if (!text) {
    auto error = fail(ErrorKind::not_found, "there is no playground \"{}\"", name);
    error.error().hint = "make one: godwit playground up";
    return error;
  }
  try {
    return nlohmann::json::parse(*text).get<State>();
  } catch (const nlohmann::json::exception& error) {
    return fail(ErrorKind::invalid, "{}/playground.json: {}", directory_of(name), error.what());
  }
}

Result<std::vector<std::string>> names() {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator it(base_directory(), error), end; !error && it != end; it.increment(error))
    if (it->is_directory(error)) found.push_back(it->path().filename());
  std::sort(found.begin(), found.end());
  return found;
}

Result<Fd> lock(const std::string& name) {
  std::error_code error;
  fs::create_directories(base_directory(), error);
  if (error) return fail(ErrorKind::failed, "make {}: {}", base_directory(), error.message());
  const std::string path = base_directory() + "/" + name + ".lock";
  // Whoever removes a playground removes the lock file too, so what was opened may be a file that is gone.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file) return fail_errno("open {}", path);
    if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return fail_errno("lock {}", path);
      if (std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        continue;
      }
      return fail(ErrorKind::busy, "another command is changing the playground \"{}\"", name);
    }
    struct stat opened {
    }, named{};
    fstat(file.get(), &opened);
    if (stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino) return file;
  }
}

namespace {

struct Life {
  char state = '?';
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
};

std::optional<Life> look_at(pid_t pid) {
  const auto text = pid > 0 ? read_file(fmt::format("/proc/{}/stat", pid)) : std::nullopt;
  if (!text) return std::nullopt;
  // The name, in parentheses, may hold anything. After it come the state, the flags as the 7th and the start time as
  // the 20th field (proc(5)).
  std::istringstream fields(text->substr(std::min(text->rfind(')'), text->size() - 1) + 1));
  Life life;
  std::string field;
  fields >> life.state;
  for (int i = 2; i <= 20 && fields >> field; ++i) {
    if (i == 7) life.flags = std::strtoull(field.c_str(), nullptr, 10);
    if (i == 20) life.start = std::strtoull(field.c_str(), nullptr, 10);
  }
  return life;
}

}  // namespace

std::uint64_t start_time(pid_t pid) {
  const auto life = look_at(pid);
  return life ? life->start : 0;
}

bool alive(pid_t pid, std::uint64_t start) {
  constexpr std::uint64_t exiting = 4;  // PF_EXITING: a PID 1 may take a while to bury the others
  const auto life = look_at(pid);
  return life && life->start == start && life->state != 'Z' && (life->flags & exiting) == 0;
}

Result<Fd> open_process(pid_t pid, std::uint64_t start, const std::string& who) {
  Fd process(pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1);
  // Compared after opening: from here the number can't go to another process unseen.
  if (!process || !alive(pid, start)) return fail(ErrorKind::gone, "{} is not running", who);
  return process;
}

Result<void> kill_process(pid_t pid, std::uint64_t start) {
  const Fd process(pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1);
  if (!process || start_time(pid) != start) return {};
  if (syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
    return fail_errno("kill process {}", pid);
  pollfd wait{.fd = process.get(), .events = POLLIN};
  if (poll(&wait, 1, 20'000) != 1) return fail(ErrorKind::timeout, "process {} doesn't die", pid);
  return {};
}

Result<void> end_service(pid_t pid, std::uint64_t start, const std::string& who, bool hard) {
  const auto process = open_process(pid, start, who);
  if (!process) return {};
  if (syscall(SYS_pidfd_send_signal, process->get(), hard ? SIGKILL : SIGTERM, nullptr, 0) != 0 && errno != ESRCH)
    return fail_errno("stop {}", who);
  pollfd wait{.fd = process->get(), .events = POLLIN};
  if (poll(&wait, 1, 20'000) != 1) return fail(ErrorKind::timeout, "{} doesn't end", who);
  return {};
}

std::string last_lines(const std::string& path, int lines) {
  const std::string text = read_file(path).value_or("");
  std::size_t at = text.size();
  for (int i = 0; i <= lines && at != std::string::npos && at != 0; ++i) at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

}  // namespace godwit::cli::playground
