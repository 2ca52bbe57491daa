#include "node/http.hpp"

#include <algorithm>
#include <boost/beast/http.hpp>
#include <cctype>
#include <limits>

namespace godwit::node::http {
namespace {

namespace beast = boost::beast;
namespace asio = boost::asio;

constexpr std::chrono::seconds send_time{60};
constexpr std::size_t segments_limit = 8;

/// Everything up to and with the empty line, and not a byte more.
Result<std::string> read_head(Stream& client, Deadline deadline) {
  std::string head;
  char buffer[4096];
  for (;;) {
    TRY(wait_readable(client, deadline));
    const ssize_t peeked = client.receive(buffer, sizeof buffer, true);
    if (peeked < 0 && errno == EAGAIN) continue;
    if (peeked < 0) return std::unexpected(client.broken("receive", errno));
    if (peeked == 0)
      return head.empty() ? fail(ErrorKind::gone, "the connection was closed")
                          : fail(ErrorKind::unreachable, "the connection ended in the middle of a message");
    const std::size_t before = head.size();
    head.append(buffer, static_cast<std::size_t>(peeked));
    const std::size_t end = head.find("\r\n\r\n", before < 3 ? 0 : before - 3);
    const std::size_t take = end == std::string::npos ? static_cast<std::size_t>(peeked) : end + 4 - before;
    head.resize(before + take);
    TRY(read_exactly(client, buffer, take, deadline));
    if (end != std::string::npos) return head;
    if (head.size() > head_limit) return fail(ErrorKind::invalid, "the head of a message is over 16 KiB");
  }
}

Result<void> parse_target(std::string_view target, Request& request) {
  request.target = target;
  const std::size_t mark = target.find('?');
  std::string_view path = target.substr(0, mark);
  if (!path.starts_with('/')) return fail(ErrorKind::invalid, "the target is not a path");
  while (!path.empty()) {
    path.remove_prefix(1);
    const std::size_t slash = std::min(path.find('/'), path.size());
    if (slash > 0) request.path.push_back(TRY(decode(path.substr(0, slash))));
    if (request.path.size() > segments_limit) return fail(ErrorKind::invalid, "the path is too deep");
    path.remove_prefix(slash);
  }
  std::string_view query = mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    const std::size_t equals = std::min(pair.find('='), pair.size());
    const std::string key = TRY(decode(pair.substr(0, equals)));
    request.query[key] = equals < pair.size() ? TRY(decode(pair.substr(equals + 1))) : "";
    query.remove_prefix(std::min(pair.size() + 1, query.size()));
  }
  return {};
}

const char* reason(int status) {
  switch (status) {
    case 101:
      return "Switching Protocols";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 409:
      return "Conflict";
    case 410:
      return "Gone";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Internal Server Error";
  }
}

}  // namespace

std::string Request::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string() : found->second;
}

bool Request::flag(const std::string& name) const {
  const auto found = query.find(name);
  return found != query.end() && (found->second.empty() || found->second == "1" || found->second == "true");
}

std::string encode(const std::string& text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_' || c == '~')
      out += static_cast<char>(c);
    else
      out += fmt::format("%{:02X}", c);
  }
  return out;
}

Result<std::string> decode(std::string_view text) {
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); i++) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size() || digit(text[i + 1]) < 0 || digit(text[i + 2]) < 0)
      return fail(ErrorKind::invalid, "malformed escape in the target");
    const char c = static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
    if (c == 0) return fail(ErrorKind::invalid, "a zero byte in the target");
    out += c;
    i += 2;
  }
  return out;
}

Result<Request> read_request(Stream& client, Deadline deadline) {
  const std::string head = TRY(read_head(client, deadline));
  beast::http::request_parser<beast::http::string_body> parser;
  parser.header_limit(head_limit);
  parser.body_limit(body_limit);
  beast::error_code error;
  parser.put(asio::buffer(head), error);
  if (error && error != beast::http::error::need_more)
    return fail(ErrorKind::invalid, "malformed request: {}", error.message());
  if (!parser.is_header_done()) return fail(ErrorKind::invalid, "malformed request");
  if (parser.chunked()) return fail(ErrorKind::invalid, "a request's body must have a Content-Length");
  Request request;
  const auto& message = parser.get();
  request.method = std::string(message.method_string());
  TRY(parse_target(std::string_view(message.target().data(), message.target().size()), request));
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    request.headers[name] = std::string(field.value());
  }
  if (const auto length = parser.content_length()) {
    if (*length > body_limit) return fail(ErrorKind::invalid, "the request's body is over 1 MiB");
    request.body.resize(*length);
    TRY(read_exactly(client, request.body.data(), request.body.size(), deadline));
  }
  return request;
}

Result<void> respond(Stream& client, int status, const std::string& body, const std::string& type) {
  return write_all(
      client,
      fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}", status,
                  reason(status), type, body.size(), body),
      in(send_time));
}

Result<void> begin_chunks(Stream& client, const std::string& type) {
  return write_all(
      client,
      fmt::format("HTTP/1.1 200 OK\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
                  type),
      in(send_time));
}

Result<void> send_chunk(Stream& client, std::string_view bytes) {
  // Without an end: a client that stops reading holds up what it asked for, nothing else.
  return write_all(client, fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes), never());
}

Result<void> accept_upgrade(Stream& client) {
  return write_all(
      client,
      fmt::format("HTTP/1.1 101 {}\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\n", reason(101), upgrade_protocol),
      in(send_time));
}

struct Answer::Parser {
  beast::http::response_parser<beast::http::buffer_body> http;
  std::string pending;  ///< read from the connection, not parsed yet
};

Answer::Answer() : parser_(std::make_unique<Parser>()) {}
Answer::Answer(Answer&&) noexcept = default;
Answer& Answer::operator=(Answer&&) noexcept = default;
Answer::~Answer() = default;

Result<Answer> Answer::to(Stream connection, const std::string& method, const std::string& target,
                          const std::string& body, const std::map<std::string, std::string>& headers,
                          Deadline deadline) {
  std::string text =
      fmt::format("{} {} HTTP/1.1\r\nHost: godwit\r\nContent-Length: {}\r\n", method, target, body.size());
  for (const auto& [name, value] : headers) text += fmt::format("{}: {}\r\n", name, value);
  if (!headers.contains("Upgrade")) text += "Connection: close\r\n";
  text += "\r\n" + body;
  TRY(write_all(connection, text, deadline));
  const auto head = read_head(connection, deadline);
  if (!head) {
    Error error = head.error();
    if (error.kind == ErrorKind::gone) error.kind = ErrorKind::unreachable;
    return std::unexpected(std::move(error));
  }
  Answer answer;
  answer.connection_ = std::move(connection);
  auto& parser = answer.parser_->http;
  parser.header_limit(head_limit);
  parser.body_limit(std::numeric_limits<std::uint64_t>::max());
  beast::error_code error;
  parser.put(asio::buffer(*head), error);
  if ((error && error != beast::http::error::need_more && error != beast::http::error::need_buffer) ||
      !parser.is_header_done())
    return fail(ErrorKind::invalid, "malformed answer: {}", error.message());
  parser.eager(true);
  answer.status_ = static_cast<int>(parser.get().result_int());
  return answer;
}

Result<std::size_t> Answer::read(char* data, std::size_t size, Deadline deadline) {
  auto& parser = parser_->http;
  std::string& pending = parser_->pending;
  while (!parser.is_done()) {
    if (!pending.empty()) {
      auto& body = parser.get().body();
      body.data = data;
      body.size = size;
      body.more = true;
      beast::error_code error;
      const std::size_t used = parser.put(asio::buffer(pending), error);
      pending.erase(0, used);
      const std::size_t got = size - body.size;
      if (error && error != beast::http::error::need_more && error != beast::http::error::need_buffer)
        return fail(ErrorKind::invalid, "malformed answer: {}", error.message());
      if (got > 0) return got;
      if (parser.is_done()) break;
      if (used > 0 && !pending.empty()) continue;
    }
    char buffer[65536];
    const std::size_t got = TRY(read_some(connection_, buffer, sizeof buffer, deadline));
    if (got == 0) return fail(ErrorKind::unreachable, "the connection ended in the middle of an answer");
    pending.append(buffer, got);
    if (pending.size() > MiB) return fail(ErrorKind::invalid, "malformed answer: a chunk header without end");
  }
  return std::size_t{0};
}

Result<std::string> Answer::body(std::size_t limit, Deadline deadline) {
  std::string all;
  char buffer[16384];
  for (;;) {
    const std::size_t got = TRY(read(buffer, sizeof buffer, deadline));
    if (got == 0) return all;
    all.append(buffer, got);
    if (all.size() > limit) return fail(ErrorKind::invalid, "the answer is over {} bytes", limit);
  }
}

}  // namespace godwit::node::http
