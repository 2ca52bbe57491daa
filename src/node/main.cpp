#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/log.hpp"
#include "base/names.hpp"
#include "kernel/wait_limit.hpp"
#include "node/daemon.hpp"
#include "node/privileges.hpp"
#include "node/version.hpp"

namespace {

using namespace godwit;

constexpr const char* default_config = "/etc/godwit/godwitd.toml";
constexpr const char* usage = R"(Usage: godwitd [--config FILE] [--check]

The daemon of a godwit node: runs pods, and moves them to and from other nodes.

  --config FILE  TOML; default /etc/godwit/godwitd.toml, or defaults where there is none
  --check        read the config, say what is wrong with it, and end
  --version
  --help

SIGTERM and SIGINT end it; its pods go on running, and the next godwitd takes them over.
Exit codes: 0 ended as asked, 1 failed, 2 wrong usage or config.
)";

struct Arguments {
  std::string config;
  bool check = false;
};

/// Exits for --help, --version and what it doesn't know.
Arguments parse(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; i++) {
    const std::string word = values[i];
    if (word == "--config" && i + 1 < count) {
      arguments.config = values[++i];
    } else if (word.starts_with("--config=")) {
      arguments.config = word.substr(9);
    } else if (word == "--check") {
      arguments.check = true;
    } else if (word == "--version") {
      fmt::print("godwitd {}\n", node::version);
      std::exit(0);
    } else if (word == "--help" || word == "-h") {
      fmt::print("{}", usage);
      std::exit(0);
    } else {
      fmt::print(stderr, "godwitd: unknown argument '{}'\n\n{}", word, usage);
      std::exit(2);
    }
  }
  return arguments;
}

Result<node::Config> read_config(const std::string& path) {
  if (!path.empty()) return node::load_config(path);
  if (::access(default_config, F_OK) == 0) return node::load_config(default_config);
  return node::parse_config("", "defaults");
}

/// A message's text on one line, without control characters: words of other nodes and of pods are in it.
class OneLine : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& to) override {
    for (const char one : message.payload) to.push_back(printable({&one, 1}) ? one : ' ');
  }
  [[nodiscard]] std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<OneLine>(); }
};

void set_up_log(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("godwitd"));
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<OneLine>('*');
  // The journal has times of its own.
  formatter->set_pattern(std::getenv("JOURNAL_STREAM") != nullptr ? "%l: %*" : "%Y-%m-%d %H:%M:%S.%e %l: %*");
  spdlog::set_formatter(std::move(formatter));
  spdlog::set_level(spdlog::level::from_str(level));
  spdlog::flush_on(spdlog::level::debug);
}

/// A pod needs descriptors by the dozen.
void raise_limits() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Tells the service manager (sd_notify(3)).
void notify(const std::string& text) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  if (path == nullptr || std::strlen(path) >= sizeof address.sun_path) return;
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ::sendto(fd.get(), text.data(), text.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
           static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path)));
}

/// glibc lets the free end of each arena grow to twice the largest block that was ever freed, and malloc_trim doesn't
/// reach it (mallopt(3), M_TRIM_THRESHOLD): with the buffers of moves that are some 17 MiB for each of the threads that
/// come and go with them. With limits that are set it keeps to these.
void give_memory_back() {
  constexpr int own_mapping = 1 << 20;  // bytes from which a block goes back to the kernel when it is freed
  constexpr int kept = 2 << 20;         // at the end of an arena
  ::mallopt(M_MMAP_THRESHOLD, own_mapping);
  ::mallopt(M_TRIM_THRESHOLD, kept);
}

}  // namespace

int main(int count, char** values) {
  // Before anything else: what is forked from it must not inherit threads, secrets, changed signals or more rights than
  // are needed.
  const auto given_up = node::give_up_others();
  auto zygote = pod::Zygote::start();
  const Arguments arguments = parse(count, values);
  auto config = read_config(arguments.config);
  if (!config) {
    fmt::print(stderr, "godwitd: {}\n", config.error().message());
    return 2;
  }
  if (arguments.check) {
    fmt::print("node {}, {} peers: the config is fine\n", config->node, config->peers.size());
    return 0;
  }
  set_up_log(config->log_level);
  if (!given_up) log::warn("this daemon keeps more rights than it needs: {}", given_up.error().message());
  if (!zygote) {
    log::error("{}", zygote.error().message());
    return 1;
  }
  raise_limits();
  give_memory_back();
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigaddset(&ending, SIGINT);
  sigaddset(&ending, SIGHUP);
  // Inherited by every thread: only this one hears them.
  ::pthread_sigmask(SIG_BLOCK, &ending, nullptr);

  if (!kernel::WaitLimit::prepare()) {
    log::error("no thread can be had");
    return 1;
  }
  const std::string where = config->socket.path;
  const std::string name = config->node;
  auto daemon = node::Daemon::start(std::move(*config), *zygote);
  if (!daemon) {
    log::error("{}", daemon.error().message());
    return 1;
  }
  log::info("node {} is up: commands on {}", name, where);
  notify("READY=1");
  int signal = 0;
  while (::sigwait(&ending, &signal) != 0 || signal == SIGHUP) {
  }
  notify("STOPPING=1");
  log::info("node {} ends ({}); its pods go on", name, ::strsignal(signal));
  daemon->reset();
  return 0;
}
