#include "store/etcd_gateway.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <boost/beast/http.hpp>
#include <charconv>

#include "base/bytes.hpp"

namespace godwit::store {
namespace {

namespace beast = boost::beast;

constexpr std::size_t head_limit = 16 * KiB;
constexpr std::size_t answer_limit = 16 * MiB;
constexpr std::size_t idle_limit = 4;
constexpr std::size_t endpoints_limit = 16;

std::unexpected<Error> malformed(std::string_view url, std::string_view why) {
  return std::unexpected(Error{ErrorKind::invalid, fmt::format("store '{}': {}", url, why), 0,
                               "etcd://HOST:2379,HOST:2379/PREFIX, or etcds://…?ca=FILE&cert=FILE&key=FILE"});
}

Result<Endpoint> parse_endpoint(std::string_view text, std::string_view url) {
  Endpoint endpoint;
  std::string_view port;
  const std::size_t close = text.find(']');
  if (text.starts_with('[')) {
    if (close == std::string_view::npos) return malformed(url, fmt::format("'{}' is not HOST:PORT", text));
    endpoint.host = text.substr(1, close - 1);
    port = text.substr(close + 1);
  } else {
    const std::size_t colon = std::min(text.find(':'), text.size());
    endpoint.host = text.substr(0, colon);
    port = text.substr(colon);
  }
  if (endpoint.host.empty()) return malformed(url, "an endpoint has no host");
  if (port.empty()) return endpoint;
  const char* end = port.data() + port.size();
  const auto [stop, error] = std::from_chars(port.data() + 1, end, endpoint.port);
  if (port[0] != ':' || port.size() < 2 || error != std::errc{} || stop != end || endpoint.port == 0)
    return malformed(url, fmt::format("'{}' is not HOST:PORT", text));
  return endpoint;
}

/// etcd says by gRPC's codes how a call has ended. With these another member may do better, and nobody knows whether
/// the call was carried out.
bool is_unsure(std::uint64_t code) {
  constexpr std::uint64_t cancelled = 1, unknown = 2, deadline_exceeded = 4, aborted = 10, internal = 13,
                          unavailable = 14;
  return code == cancelled || code == unknown || code == deadline_exceeded || code == aborted || code == internal ||
         code == unavailable;
}

std::string post(const std::string& path, const Json& body) {
  const std::string content = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  return fmt::format("POST {} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
                     path, content.size(), content);
}

}  // namespace

Result<EtcdPlace> EtcdPlace::parse(const std::string& url) {
  EtcdPlace place;
  std::string_view rest = url;
  place.tls = rest.starts_with("etcds://");
  if (!place.tls && !rest.starts_with("etcd://")) return malformed(url, "it begins with etcd:// or etcds://");
  rest.remove_prefix(place.tls ? 8 : 7);
  std::string_view query;
  if (const std::size_t mark = rest.find('?'); mark != std::string_view::npos) {
    query = rest.substr(mark + 1);
    rest = rest.substr(0, mark);
  }
  if (const std::size_t slash = rest.find('/'); slash != std::string_view::npos) {
    if (slash + 1 < rest.size()) place.prefix = rest.substr(slash);
    while (place.prefix.ends_with('/')) place.prefix.pop_back();
    rest = rest.substr(0, slash);
  }
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    place.endpoints.push_back(TRY(parse_endpoint(rest.substr(0, comma), url)));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  if (place.endpoints.empty() || place.endpoints.size() > endpoints_limit)
    return malformed(url, fmt::format("it names one to {} endpoints", endpoints_limit));
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(pair.size() + 1, query.size()));
    const std::size_t equals = std::min(pair.find('='), pair.size());
    const std::string_view name = pair.substr(0, equals);
    const std::string value(pair.substr(std::min(equals + 1, pair.size())));
    if (!value.starts_with('/')) return malformed(url, fmt::format("'{}' is not NAME=/PATH", pair));
    if (name == "ca")
      place.ca = value;
    else if (name == "cert")
      place.certificate = value;
    else if (name == "key")
      place.key = value;
    else
      return malformed(url, fmt::format("'{}' is none of ca, cert, key", name));
    if (!place.tls) return malformed(url, "certificates are for etcds://");
  }
  if (place.certificate.empty() != place.key.empty()) return malformed(url, "cert and key belong together");
  return place;
}

Result<std::unique_ptr<EtcdGateway>> EtcdGateway::open(EtcdPlace place) {
  std::unique_ptr<EtcdGateway> gateway(new EtcdGateway(std::move(place)));
  const EtcdPlace& known = gateway->place_;
  if (known.tls) gateway->tls_ = TRY(tls_client(known.ca, known.certificate, known.key));
  return gateway;
}

Result<EtcdGateway::Answer> EtcdGateway::call(const std::string& path, const Json& body) {
  const std::string request = post(path, body);
  const Deadline end = std::chrono::steady_clock::now() + place_.call_time;
  std::size_t member = 0;
  {
    const std::lock_guard lock(mutex_);
    member = preferred_;
  }
  bool unsure = false;
  Error last{ErrorKind::unreachable, "no answer", 0, {}};
  // Twice round: the second time a member that was electing a leader may be done.
  for (std::size_t tries = 0; tries < 2 * place_.endpoints.size(); tries++) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= end) break;
    bool sent = false;
    auto reply = ask(member, request, std::min(end, now + place_.attempt_time), sent);
    const Endpoint& asked = place_.endpoints[member];
    if (reply) {
      Json json = Json::parse(reply->body, nullptr, false);
      if (reply->status == 200 && json.is_object()) {
        const std::lock_guard lock(mutex_);
        preferred_ = member;
        return Answer{std::move(json), unsure};
      }
      const bool said = json.is_object() && json.contains("code");
      const std::string why = said && json.contains("error") && json["error"].is_string()
                                  ? json["error"].get<std::string>()
                                  : fmt::format("HTTP status {}", reply->status);
      if (said && !is_unsure(number_in(json, "code")))
        return fail(ErrorKind::failed, "store: etcd on {}:{}: {}", asked.host, asked.port, why);
      last = Error{ErrorKind::unreachable, fmt::format("{}:{}: {}", asked.host, asked.port, why), 0, {}};
    } else {
      last = std::move(reply.error()).within(fmt::format("{}:{}", asked.host, asked.port));
    }
    unsure = unsure || sent;
    member = (member + 1) % place_.endpoints.size();
  }
  last.kind = ErrorKind::unreachable;
  if (last.hint.empty()) last.hint = "more than half of etcd's members must answer";
  return std::unexpected(std::move(last).within("store: etcd"));
}

Result<void> EtcdGateway::watch(const Json& body, std::chrono::milliseconds limit,
                                const std::function<bool(const Json&)>& news) {
  std::size_t member = 0;
  {
    const std::lock_guard lock(mutex_);
    member = preferred_;
  }
  // A line of JSON for each message.
  std::size_t seen = 0;
  const auto enough = [&](const std::string& text) {
    for (std::size_t end = text.find('\n', seen); end != std::string::npos; end = text.find('\n', seen)) {
      const Json message = Json::parse(text.substr(seen, end - seen), nullptr, false);
      seen = end + 1;
      if (message.is_object() && news(message)) return true;
    }
    return false;
  };
  bool sent = false;
  const auto reply = ask(member, post("/v3/watch", body), std::chrono::steady_clock::now() + limit, sent, enough);
  if (!reply && (!sent || reply.error().kind != ErrorKind::timeout))
    return std::unexpected(Error(reply.error()).within("store: etcd"));
  if (reply && reply->status != 200) return fail(ErrorKind::unreachable, "store: etcd: HTTP status {}", reply->status);
  return {};
}

Result<EtcdGateway::Reply> EtcdGateway::ask(std::size_t member, const std::string& request, Deadline deadline,
                                            bool& sent, const std::function<bool(const std::string&)>& enough) {
  const Endpoint& endpoint = place_.endpoints[member];
  auto connection = take(member);
  if (!connection) connection = TRY(Connection::open(endpoint.host, endpoint.port, tls_.get(), deadline));
  sent = true;
  const auto talk = [&]() -> Result<Reply> {
    TRY(connection->write(request, deadline));
    beast::http::response_parser<beast::http::string_body> parser;
    parser.header_limit(head_limit);
    parser.body_limit(answer_limit);
    std::string pending;
    char buffer[16 * KiB];
    while (!parser.is_done()) {
      const std::size_t got = TRY(connection->read(buffer, sizeof buffer, deadline));
      beast::error_code error;
      if (got == 0) {
        if (!parser.got_some()) return fail(ErrorKind::unreachable, "the connection ended before an answer");
        parser.put_eof(error);
        if (error || !parser.is_done()) return fail(ErrorKind::unreachable, "the connection ended in an answer");
        break;
      }
      pending.append(buffer, got);
      while (!parser.is_done()) {
        // The body's room is made at once: not before it is known how much that is.
        if (parser.is_header_done()) {
          if (parser.content_length().value_or(0) > answer_limit)
            return fail(ErrorKind::unreachable, "the answer is over {} bytes", answer_limit);
          parser.eager(true);
        }
        if (pending.empty()) break;
        const std::size_t used = parser.put(boost::asio::buffer(pending), error);
        pending.erase(0, used);
        if (error == beast::http::error::need_more || (!error && used == 0)) break;
        if (error) return fail(ErrorKind::unreachable, "malformed answer: {}", error.message());
      }
      if (pending.size() > MiB) return fail(ErrorKind::unreachable, "malformed answer");
      if (enough && parser.is_header_done() && enough(parser.get().body()))
        return Reply{static_cast<int>(parser.get().result_int()), {}};
    }
    const bool keep = parser.keep_alive() && pending.empty() && !enough;
    Reply reply{static_cast<int>(parser.get().result_int()), std::move(parser.get().body())};
    if (keep) give_back(member, std::move(*connection));
    return reply;
  };
  auto reply = talk();
  // Where one is broken the others are, too. That nothing has changed breaks nothing.
  if (!reply && !(enough && reply.error().kind == ErrorKind::timeout)) drop(member);
  return reply;
}

std::optional<Connection> EtcdGateway::take(std::size_t member) {
  const std::lock_guard lock(mutex_);
  auto& idle = idle_[member];
  if (idle.empty()) return {};
  Connection connection = std::move(idle.back());
  idle.pop_back();
  return connection;
}

void EtcdGateway::give_back(std::size_t member, Connection connection) {
  const std::lock_guard lock(mutex_);
  if (idle_[member].size() < idle_limit) idle_[member].push_back(std::move(connection));
}

void EtcdGateway::drop(std::size_t member) {
  const std::lock_guard lock(mutex_);
  idle_[member].clear();
}

std::string to_base64(std::string_view bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<std::size_t>(size));
  return text;
}

Result<std::string> from_base64(const std::string& text) {
  std::string bytes(text.size() / 4 * 3 + 3, '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                                   reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (size < 0 || text.size() % 4 != 0) return fail(ErrorKind::invalid, "store: malformed base64");
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  bytes.resize(static_cast<std::size_t>(size) - padding);
  return bytes;
}

std::uint64_t number_in(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end()) return 0;
  if (found->is_number_unsigned()) return found->get<std::uint64_t>();
  if (!found->is_string()) return 0;
  const auto& text = found->get_ref<const std::string&>();
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

}  // namespace godwit::store
