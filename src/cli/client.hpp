#pragma once

#include <optional>
#include <string>

#include "node/http.hpp"
#include "node/json.hpp"

/// The command's side of the API.
namespace godwit::cli {

using node::Json;

/// What a command ends with; in the help of `godwit`, and stable.
namespace exit_code {
inline constexpr int ok = 0;
inline constexpr int failed = 1;
inline constexpr int usage = 2;
inline constexpr int refused = 3;
inline constexpr int not_found = 4;
inline constexpr int unreachable = 5;
inline constexpr int timeout = 6;
inline constexpr int store_away = 7;        ///< ps, nodes: what is shown is what the nodes that answer know
inline constexpr int run_failed = 125;      ///< run, exec: godwit itself failed
inline constexpr int not_executable = 126;  ///< run, exec: the program can't be executed
inline constexpr int no_program = 127;      ///< run, exec: there is no such program
}  // namespace exit_code

/// Options of every command.
struct Common {
  std::string socket;  ///< empty: GODWIT_SOCKET, or /run/godwit/godwit.sock
  std::string node;    ///< another node's daemon answers, asked through ours
  bool json = false;
};

/// Talks to the daemon: one connection for each request.
class Client {
 public:
  explicit Client(const Common& common) : common_(common) {}

  /// The answer's JSON; an error the daemon gave becomes an Error.
  Result<Json> request(const std::string& method, const std::string& target, const Json& body = nullptr) const;
  /// The same for an answer that may take as long as it likes. When the daemon goes away before it has given it, the
  /// next one is asked, as long as there is one within half a minute.
  Result<Json> outwait(const std::string& method, const std::string& target) const;
  /// An answer that streams (its status is 200).
  Result<node::http::Answer> stream(const std::string& method, const std::string& target,
                                    const Json& body = nullptr) const;
  /// A connection turned into a stream of frames.
  Result<Stream> upgrade(const std::string& target, const Json& body = nullptr) const;

 private:
  Result<node::http::Answer> send(const std::string& method, const std::string& target, const Json& body,
                                  bool upgrade) const;
  const Common common_;
};

int exit_code_of(const Error&);
/// Prints one line with the next step to stderr (with --json: the error as JSON to stdout) and gives the exit code.
int complain(const Common&, const Error&);
void print_json(const Json&);

/// "/v1/pods/NAME/…"
std::string pod_target(const std::string& name, const std::string& rest = {});
/// A field of a daemon's answer; empty, or 0, where there is none.
std::string text_of(const Json&, const char* name);
std::uint64_t number_of(const Json&, const char* name);
/// "1.5 GiB"
std::string human_bytes(std::uint64_t);
/// "1.24 ms"
std::string human_time(std::uint64_t us);
/// "2026-11-26 14:03:05", of milliseconds since the epoch.
std::string local_time(std::int64_t ms);
/// Columns padded to their widest cell; the first row is the head.
std::string table(const std::vector<std::vector<std::string>>& rows);
void print_table(const std::vector<std::vector<std::string>>& rows);
/// Arguments as a shell would need them.
std::string shell_line(const Json& arguments);

}  // namespace godwit::cli
