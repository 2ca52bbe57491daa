// The first byte says whether the rest is a client's request or a daemon's answer.
#include "node/http.hpp"

#include "fuzz.hpp"

namespace {

using namespace godwit;
namespace http = node::http;

void request(BytesView input) {
  fuzz::Wire wire(input);
  const auto request = http::read_request(wire.stream, node::in(std::chrono::seconds(1)));
  if (!request) return;
  fuzz::require(request->body.size() <= http::body_limit && request->path.size() <= 9, "a request within its limits");
  (void)request->header("host");
  (void)request->flag("follow");
  for (const auto& segment : request->path)
    fuzz::require(http::decode(http::encode(segment)).value_or("") == segment, "a segment is written as it was read");
}

void answer(BytesView input) {
  fuzz::Wire wire(input);
  auto answer = http::Answer::to(std::move(wire.stream), "GET", "/v1/pods", "", {}, node::in(std::chrono::seconds(1)));
  if (answer) (void)answer->body(64 * KiB, node::in(std::chrono::seconds(1)));
}

void one(BytesView input) {
  if (input.empty()) return;
  (input[0] % 2 == 0 ? request : answer)(input.subspan(1));
}

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  for (const std::string_view text :
       {"0GET /v1/pods/web/logs?follow=1&after=%41 HTTP/1.1\r\nHost: godwit\r\n\r\n",
        "0POST /v1/pods HTTP/1.1\r\nHost: godwit\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "0POST /v1/pods/web/attach HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: godwit-frames\r\n\r\n",
        "1HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "1HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n\n\r\n0\r\n\r\n",
        "1HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: godwit-frames\r\n\r\n",
        "1HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nno such pod"})
    all.push_back(fuzz::bytes_of(text));
  return all;
}

}  // namespace

FUZZ_TARGET(one, seeds)
