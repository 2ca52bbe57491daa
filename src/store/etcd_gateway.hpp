#pragma once

#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "store/connection.hpp"

/// etcd's v3 API as its JSON gateway gives it: a POST of JSON for every call, on HTTP/1.1.
namespace godwit::store {

using Json = nlohmann::json;

struct Endpoint {
  std::string host;
  std::uint16_t port = 2379;
  bool operator==(const Endpoint&) const = default;
};

/// "etcd://HOST:PORT,HOST:PORT,[V6]:PORT/PREFIX", "etcds://…?ca=FILE&cert=FILE&key=FILE". Ports may be left out (2379),
/// and so may the prefix ("godwit").
struct EtcdPlace {
  std::vector<Endpoint> endpoints;
  std::string prefix = "/godwit";
  bool tls = false;
  std::string ca, certificate, key;
  std::chrono::milliseconds attempt_time{2000};  ///< for one member to answer
  std::chrono::milliseconds call_time{6000};     ///< for a call in all

  /// `invalid`, with the part that is wrong.
  static Result<EtcdPlace> parse(const std::string& url);
};

/// The members of a cluster, of which one is asked. Thread-safe; connections are kept open.
class EtcdGateway {
 public:
  static Result<std::unique_ptr<EtcdGateway>> open(EtcdPlace);

  struct Answer {
    Json json;
    /// An earlier try of the same call may have been carried out: it was sent, and how it ended wasn't heard.
    bool unsure = false;
  };
  /// Asks one member after the other until one answers. `unreachable` when none does, or none has the others' ear;
  /// `failed` with etcd's own words when the answer is that it can't be.
  Result<Answer> call(const std::string& path, const Json& body);

  /// Follows changes until `news` says of a message that it is what was waited for, or the time is over.
  Result<void> watch(const Json& body, std::chrono::milliseconds limit, const std::function<bool(const Json&)>& news);

  [[nodiscard]] const std::string& prefix() const { return place_.prefix; }

 private:
  explicit EtcdGateway(EtcdPlace place) : place_(std::move(place)), idle_(place_.endpoints.size()) {}
  struct Reply {
    int status = 0;
    std::string body;
  };
  /// With `enough`: an answer without an end, of which so much will do. The connection isn't used again then.
  Result<Reply> ask(std::size_t member, const std::string& request, Deadline, bool& sent,
                    const std::function<bool(const std::string& body)>& enough = {});
  std::optional<Connection> take(std::size_t member);
  void give_back(std::size_t member, Connection);
  void drop(std::size_t member);

  const EtcdPlace place_;
  TlsContext tls_;
  std::mutex mutex_;
  std::vector<std::vector<Connection>> idle_;  ///< by member
  std::size_t preferred_ = 0;                  ///< member that answered last
};

/// etcd's bytes travel as base64, and its 64-bit numbers as strings.
std::string to_base64(std::string_view);
Result<std::string> from_base64(const std::string&);
std::uint64_t number_in(const Json&, const char* name);

}  // namespace godwit::store
