#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "node/io.hpp"

/// As much of HTTP/1.1 as the API needs, on blocking connections: one request on a connection, bodies with a length,
/// answers that stream in chunks, and upgrades to a raw stream of bytes.
namespace godwit::node::http {

inline constexpr std::size_t head_limit = 16 * KiB;
inline constexpr std::size_t body_limit = MiB;

struct Request {
  std::string method;                          ///< "GET"
  std::vector<std::string> path;               ///< decoded segments: {"v1", "pods", "redis"}
  std::map<std::string, std::string> query;    ///< decoded
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string target;                          ///< path and query as they came
  std::string body;
  [[nodiscard]] std::string header(const std::string& name) const;
  [[nodiscard]] bool flag(const std::string& name) const;  ///< ?name, ?name=1, ?name=true
};

/// Takes exactly the request off the connection; what follows it stays there. `gone` when the connection ended before a
/// first byte; `invalid` for what is malformed or over the limits.
Result<Request> read_request(Stream& client, Deadline);

Result<void> respond(Stream& client, int status, const std::string& body, const std::string& type = "application/json");
/// Begins an answer whose length isn't known; then `send_chunk`, and at last an empty one.
Result<void> begin_chunks(Stream& client, const std::string& type);
Result<void> send_chunk(Stream& client, std::string_view bytes);
/// From here on the connection is a stream of bytes both ways.
Result<void> accept_upgrade(Stream& client);
inline constexpr std::string_view upgrade_protocol = "godwit-frames";

/// An answer being read.
class Answer {
 public:
  /// Sends a request (with `Upgrade` when asked) and reads the head of its answer.
  static Result<Answer> to(Stream connection, const std::string& method, const std::string& target,
                           const std::string& body, const std::map<std::string, std::string>& headers, Deadline);

  [[nodiscard]] int status() const { return status_; }
  /// Some of the body; 0 at its end, `unreachable` when the connection ended before.
  Result<std::size_t> read(char* data, std::size_t size, Deadline);
  /// The rest of the body.
  Result<std::string> body(std::size_t limit, Deadline);
  /// The connection, after status 101.
  [[nodiscard]] Stream take_connection() { return std::move(connection_); }

  Answer(Answer&&) noexcept;
  Answer& operator=(Answer&&) noexcept;
  ~Answer();

 private:
  struct Parser;
  Answer();
  Stream connection_;
  int status_ = 0;
  std::unique_ptr<Parser> parser_;
};

/// For one segment of a path or a value of a query.
std::string encode(const std::string& text);
Result<std::string> decode(std::string_view text);

}  // namespace godwit::node::http
