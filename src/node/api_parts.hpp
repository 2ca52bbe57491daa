#pragma once

#include "node/api.hpp"
#include "node/follow.hpp"
#include "node/http.hpp"
#include "node/json.hpp"
#include "node/stream.hpp"

/// The API's inside, spread over api*.cpp.
namespace godwit::node {

/// In a request that another daemon passes on: it is about a pod of this node, or nothing is.
inline constexpr const char* forwarded_header = "x-godwit-forwarded";
/// In a request from a command: that node's daemon shall do it.
inline constexpr const char* node_header = "x-godwit-node";
/// Answer to a forwarded request when the pod isn't here (any more): ask the store again.
inline constexpr int misdirected = 421;

/// Where a pod is.
struct Place {
  std::shared_ptr<LocalPod> pod;  ///< here
  store::Record record;           ///< or the store's word about it
};
/// `not_found` when nobody has it. One that is about to be here is waited for.
Result<Place> locate(const Api&, const std::string& name);

/// The error about a pod that is ours by its record and nowhere to be found.
Error lost(const std::string& name);

void answer(Stream& client, const Json&, int status = 200);
void answer(Stream& client, const Error&);

/// One request to another daemon; `forwarded`: marked so.
Result<http::Answer> ask_peer(const Api&, const std::string& peer, const std::string& method, const std::string& target,
                              const std::string& body, Deadline, bool upgrade = false, bool forwarded = true);

/// A stream of a pod's frames, wherever it is.
class PodStream final : public FrameSource {
 public:
  PodStream() = default;
  static Result<std::unique_ptr<PodStream>> open(const Api&, const std::string& name, const StreamOptions&);
  ~PodStream() override;
  Stream& stream() override { return stream_; }

 private:
  Stream stream_;
  std::thread server_;
};

Json node_json(const Api&);
void serve_nodes(const Api&, Stream& client, bool fresh);
void change_trust(const Api&, Stream& client, const http::Request&);
void serve_pods(const Api&, Stream& client, bool local);

void serve_wait(const Api&, Stream& client, const http::Request&, const std::string& name);
void serve_logs(const Api&, Stream& client, const http::Request&, const std::string& name);
void serve_attach(const Api&, Stream& client, const http::Request&, const std::string& name);
/// These return an error before anything was answered.
Result<void> serve_exec(Stream& client, const http::Request&, LocalPod&);
Result<void> serve_migrate(const Api&, Stream& client, const http::Request&, const std::shared_ptr<LocalPod>&);

inline bool is_forwarded(const http::Request& request) {
  return !request.header(forwarded_header).empty();
}
inline bool wants_upgrade(const http::Request& request) {
  return request.header("upgrade") == http::upgrade_protocol;
}

}  // namespace godwit::node
