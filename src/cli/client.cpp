#include "cli/client.hpp"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <thread>

namespace godwit::cli {
namespace {

constexpr std::size_t answer_limit = 64 * MiB;
constexpr std::chrono::seconds daemon_patience{30};
constexpr const char* default_socket = "/run/godwit/godwit.sock";

std::string socket_path(const Common& common) {
  if (!common.socket.empty()) return common.socket;
  const char* from_environment = std::getenv("GODWIT_SOCKET");
  return from_environment != nullptr && *from_environment != '\0' ? from_environment : default_socket;
}

Result<Fd> connect_daemon(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return fail(ErrorKind::invalid, "socket path {} is too long", path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno("socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  const int code = errno;
  const char* hint = code == EACCES || code == EPERM ? "you may not use it; try as root, or ask for its group"
                                                     : "is godwitd running? systemctl status godwitd, or --socket PATH";
  return std::unexpected(Error{code == EACCES || code == EPERM ? ErrorKind::refused : ErrorKind::unreachable,
                               fmt::format("connect to the daemon on {}", path), code, hint});
}

Result<Json> json_of(int status, const std::string& body) {
  Json json = TRY(node::parse_json(body));
  if (auto error = node::error_in(json)) return std::unexpected(std::move(*error));
  if (status >= 300) return fail(ErrorKind::failed, "the daemon answered with status {}", status);
  return json;
}

}  // namespace

Result<node::http::Answer> Client::send(const std::string& method, const std::string& target, const Json& body,
                                        bool upgrade) const {
  std::map<std::string, std::string> headers;
  if (!common_.node.empty()) headers["X-Godwit-Node"] = common_.node;
  if (upgrade) {
    headers["Upgrade"] = std::string(node::http::upgrade_protocol);
    headers["Connection"] = "Upgrade";
  }
  return node::http::Answer::to(Stream(TRY(connect_daemon(socket_path(common_)))), method, target,
                                body.is_null() ? "" : node::dump(body), headers, node::never());
}

Result<Json> Client::request(const std::string& method, const std::string& target, const Json& body) const {
  auto answer = TRY(send(method, target, body, false));
  return json_of(answer.status(), TRY(answer.body(answer_limit, node::never())));
}

Result<Json> Client::outwait(const std::string& method, const std::string& target) const {
  // Whoever isn't there in the first place isn't waited for.
  TRY(request("GET", "/v1/node"));
  auto patience = node::in(daemon_patience);
  for (;;) {
    const auto asked = std::chrono::steady_clock::now();
    auto answer = send(method, target, nullptr, false);
    auto body = answer ? answer->body(answer_limit, node::never()) : std::unexpected(answer.error());
    if (body) return json_of(answer->status(), *body);
    const auto now = std::chrono::steady_clock::now();
    if (now - asked > std::chrono::seconds(1)) patience = node::in(daemon_patience);
    if (now > patience) return std::unexpected(body.error());
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

Result<node::http::Answer> Client::stream(const std::string& method, const std::string& target,
                                          const Json& body) const {
  auto answer = TRY(send(method, target, body, false));
  if (answer.status() == 200) return answer;
  const Json json = TRY(node::parse_json(TRY(answer.body(answer_limit, node::never()))));
  if (auto error = node::error_in(json)) return std::unexpected(std::move(*error));
  return fail(ErrorKind::failed, "the daemon answered with status {}", answer.status());
}

Result<Stream> Client::upgrade(const std::string& target, const Json& body) const {
  auto answer = TRY(send("POST", target, body, true));
  if (answer.status() == 101) return answer.take_connection();
  const Json json = TRY(node::parse_json(TRY(answer.body(answer_limit, node::never()))));
  if (auto error = node::error_in(json)) return std::unexpected(std::move(*error));
  return fail(ErrorKind::failed, "the daemon answered with status {}", answer.status());
}

int exit_code_of(const Error& error) {
  switch (error.kind) {
    case ErrorKind::invalid:
      return exit_code::usage;
    case ErrorKind::refused:
    case ErrorKind::busy:
      return exit_code::refused;
    case ErrorKind::not_found:
    case ErrorKind::gone:
      return exit_code::not_found;
    case ErrorKind::unreachable:
      return exit_code::unreachable;
    case ErrorKind::timeout:
      return exit_code::timeout;
    case ErrorKind::failed:
    case ErrorKind::cancelled:
      break;
  }
  return exit_code::failed;
}

int complain(const Common& common, const Error& error) {
  if (common.json) print_json(node::to_json(error));
  std::string line = error.message();
  std::ranges::replace(line, '\n', ' ');
  fmt::print(stderr, "godwit: {}\n", line);
  return exit_code_of(error);
}

void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

std::string pod_target(const std::string& name, const std::string& rest) {
  return "/v1/pods/" + node::http::encode(name) + rest;
}

std::string text_of(const Json& json, const char* name) {
  return node::text_field(json, name).value_or("");
}

std::uint64_t number_of(const Json& json, const char* name) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, node::number_field(json, name).value_or(0)));
}

std::string human_bytes(std::uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); unit++) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, units[unit]);
}

std::string human_time(std::uint64_t us) {
  if (us < 1000) return fmt::format("{} us", us);
  if (us < 1000 * 1000) return fmt::format("{:.2f} ms", static_cast<double>(us) / 1e3);
  return fmt::format("{:.2f} s", static_cast<double>(us) / 1e6);
}

std::string local_time(std::int64_t ms) {
  const std::time_t seconds = ms / 1000;
  std::tm parts{};
  char text[32];
  if (::localtime_r(&seconds, &parts) == nullptr || std::strftime(text, sizeof text, "%F %T", &parts) == 0) return "?";
  return text;
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); i++) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); i++)
      text += i + 1 == row.size() ? row[i] + "\n" : fmt::format("{:<{}}  ", row[i], widths[i]);
  return text;
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  fmt::print("{}", table(rows));
}

std::string shell_line(const Json& arguments) {
  std::string line;
  for (const Json& argument : arguments) {
    const std::string text = argument.is_string() ? argument.get<std::string>() : argument.dump();
    const bool plain = !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
      return std::isalnum(c) != 0 ||
             std::string_view("-_./:=,+@%").find(static_cast<char>(c)) != std::string_view::npos;
    });
    std::string quoted = "'";
    for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
    line += (line.empty() ? "" : " ") + (plain ? text : quoted + "'");
  }
  return line;
}

}  // namespace godwit::cli
