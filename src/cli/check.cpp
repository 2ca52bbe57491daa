#include "cli/check.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/commands.hpp"
#include "node/config.hpp"

namespace godwit::cli {
namespace {

constexpr int patience_ms = 10000;

const char* to_string(Weight weight) {
  switch (weight) {
    case Weight::essential:
      return "essential";
    case Weight::feature:
      return "feature";
    case Weight::speed:
      return "speed";
  }
  return "?";
}

constexpr const char* config_path = "/etc/godwit/godwitd.toml";

/// By what the daemon of this machine is told: where it keeps its pods is the file system that matters.
std::vector<Check> checks_here() {
  const auto config = node::load_config(config_path);
  auto checks = all_checks(config.value_or(node::Config()));
  // Without one it goes by what a config says that says nothing.
  if (!config && config.error().code == ENOENT) return checks;
  const auto attempt = [config]() -> Result<void> {
    if (!config) return std::unexpected(config.error());
    return {};
  };
  checks.push_back({fmt::format("the config {}", config_path), Weight::essential, "godwitd doesn't start",
                    "godwitd --config FILE --check; what stands above holds for the defaults", attempt});
  return checks;
}

}  // namespace

Result<void> try_in_child(const std::function<Result<void>()>& attempt) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe");
  Fd from(ends[0]);
  Fd to(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return fail_errno("fork");
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto done = attempt();
    const std::string text = done ? "" : done.error().message();
    (void)!::write(to.get(), text.data(), std::min<std::size_t>(text.size(), 4000));
    ::_exit(done ? 0 : 1);
  }
  to.reset();
  pollfd end{from.get(), POLLIN, 0};
  const bool answered = ::poll(&end, 1, patience_ms) > 0;
  if (!answered) ::kill(child, SIGKILL);
  char text[4096];
  const ssize_t size = answered ? ::read(from.get(), text, sizeof text) : 0;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!answered) return fail(ErrorKind::timeout, "no answer in {} s", patience_ms / 1000);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (WIFSIGNALED(status)) return fail(ErrorKind::failed, "ended by signal {}", WTERMSIG(status));
  return fail(ErrorKind::failed, "{}", std::string(text, static_cast<std::size_t>(std::max<ssize_t>(size, 0))));
}

int check(const Common& common) {
  Json list = Json::array();
  int code = exit_code::ok;
  int missing = 0;
  for (const Check& item : checks_here()) {
    const auto tried = try_in_child(item.attempt);
    const std::string why = tried ? "" : tried.error().what;
    if (!tried) missing++;
    if (!tried && item.weight == Weight::essential) code = exit_code::refused;
    list.push_back({{"name", item.name},
                    {"ok", tried.has_value()},
                    {"weight", to_string(item.weight)},
                    {"error", why},
                    {"cost", item.cost},
                    {"fix", item.fix}});
    if (common.json) continue;
    if (tried) {
      fmt::print("ok       {}\n", item.name);
      continue;
    }
    fmt::print("{:<8} {}: {}\n", item.weight == Weight::essential ? "MISSING" : "lacks", item.name, why);
    fmt::print("         cost: {}\n", item.cost);
    if (!item.fix.empty()) fmt::print("         do:   {}\n", item.fix);
  }
  if (common.json) {
    print_json(Json{{"ok", code == exit_code::ok}, {"missing", missing}, {"checks", list}});
    return code;
  }
  if (missing == 0)
    fmt::print("this machine has all that godwit uses\n");
  else
    fmt::print("{}\n", code == exit_code::ok ? "godwit works here, without what is said above"
                                             : "godwit does not work here: something essential is missing");
  return code;
}

}  // namespace godwit::cli
