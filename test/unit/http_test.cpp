#include "node/http.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

namespace godwit::node::http {
namespace {

using namespace std::chrono_literals;

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client = Stream(Fd(fds[0]));
    server = Stream(Fd(fds[1]));
  }
  Stream client, server;
};

Result<Request> parse(const std::string& text) {
  Pair pair;
  std::thread sender([&] {
    (void)write_all(pair.client, text, in(5s));
    shutdown(pair.client.fd(), SHUT_WR);
  });
  auto request = read_request(pair.server, in(5s));
  pair.server.reset();
  sender.join();
  return request;
}

TEST(Http, RequestIsTakenApart) {
  const auto request = parse(
      "POST /v1/pods/re%20dis/migrate?strategy=auto&dry&x=a%26b HTTP/1.1\r\nHost: x\r\nX-Two: Yes\r\n"
      "Content-Length: 4\r\n\r\nbody");
  ASSERT_TRUE(request) << request.error().message();
  EXPECT_EQ(request->method, "POST");
  EXPECT_EQ(request->path, (std::vector<std::string>{"v1", "pods", "re dis", "migrate"}));
  EXPECT_EQ(request->query.at("strategy"), "auto");
  EXPECT_EQ(request->query.at("x"), "a&b");
  EXPECT_TRUE(request->flag("dry"));
  EXPECT_FALSE(request->flag("wet"));
  EXPECT_EQ(request->header("x-two"), "Yes");
  EXPECT_EQ(request->body, "body");
}

TEST(Http, HostileRequestsAreErrors) {
  EXPECT_EQ(parse("").error().kind, ErrorKind::gone);
  EXPECT_EQ(parse("GET / HTT").error().kind, ErrorKind::unreachable);
  EXPECT_EQ(parse("GET  HTTP/1.1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("garbage\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("GET x HTTP/1.1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("GET /%zz HTTP/1.1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("GET /%00 HTTP/1.1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("GET /1/2/3/4/5/6/7/8/9 HTTP/1.1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort").error().kind, ErrorKind::unreachable);
  EXPECT_EQ(parse("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").error().kind, ErrorKind::invalid);
  EXPECT_EQ(parse("GET / HTTP/1.1\r\nX: " + std::string(100000, 'x')).error().kind, ErrorKind::invalid);
}

TEST(Http, AnswerWithLength) {
  Pair pair;
  std::thread server([&] {
    const auto request = read_request(pair.server, in(5s));
    ASSERT_TRUE(request);
    ASSERT_TRUE(respond(pair.server, 404, "{\"a\":1}"));
  });
  auto answer = Answer::to(std::move(pair.client), "GET", "/v1/x", "", {}, in(5s));
  server.join();
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->status(), 404);
  const auto body = answer->body(1000, in(5s));
  ASSERT_TRUE(body) << body.error().message();
  EXPECT_EQ(*body, "{\"a\":1}");
}

TEST(Http, ChunksArriveWhenTheyAreSentAndInOrder) {
  Pair pair;
  std::string expected;
  std::thread server([&] {
    ASSERT_TRUE(read_request(pair.server, in(5s)));
    ASSERT_TRUE(begin_chunks(pair.server, "text/plain"));
    ASSERT_TRUE(send_chunk(pair.server, "first"));
    char go;
    // The second part is sent after the client has seen the first.
    ASSERT_TRUE(read_exactly(pair.server, &go, 1, in(5s)));
    ASSERT_TRUE(send_chunk(pair.server, std::string(300000, 'x')));
    ASSERT_TRUE(send_chunk(pair.server, ""));
  });
  Stream client(Fd(::dup(pair.client.fd())));
  auto answer = Answer::to(std::move(pair.client), "GET", "/", "", {}, in(5s));
  ASSERT_TRUE(answer) << answer.error().message();
  char buffer[64];
  const auto first = answer->read(buffer, sizeof buffer, in(5s));
  ASSERT_TRUE(first) << first.error().message();
  EXPECT_EQ(std::string(buffer, *first), "first");
  ASSERT_TRUE(write_all(client, "g", 1, in(5s)));
  const auto rest = answer->body(MiB, in(5s));
  ASSERT_TRUE(rest) << rest.error().message();
  EXPECT_EQ(*rest, std::string(300000, 'x'));
  server.join();
}

TEST(Http, CutOffAnswerIsAnError) {
  Pair pair;
  std::thread server([&] {
    ASSERT_TRUE(read_request(pair.server, in(5s)));
    ASSERT_TRUE(begin_chunks(pair.server, "text/plain"));
    ASSERT_TRUE(send_chunk(pair.server, "first"));
    pair.server.reset();
  });
  auto answer = Answer::to(std::move(pair.client), "GET", "/", "", {}, in(5s));
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->body(1000, in(5s)).error().kind, ErrorKind::unreachable);
  server.join();
}

TEST(Http, BytesAfterAnUpgradeAreLeftOnTheConnection) {
  Pair pair;
  std::thread server([&] {
    const auto request = read_request(pair.server, in(5s));
    ASSERT_TRUE(request);
    EXPECT_EQ(request->header("upgrade"), upgrade_protocol);
    ASSERT_TRUE(accept_upgrade(pair.server));
    ASSERT_TRUE(write_all(pair.server, "raw", 3, in(5s)));
  });
  auto answer = Answer::to(std::move(pair.client), "POST", "/", "{}",
                           {{"Upgrade", std::string(upgrade_protocol)}, {"Connection", "Upgrade"}}, in(5s));
  server.join();
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->status(), 101);
  Stream raw = answer->take_connection();
  char bytes[3];
  ASSERT_TRUE(read_exactly(raw, bytes, 3, in(5s)));
  EXPECT_EQ(std::string(bytes, 3), "raw");
}

}  // namespace
}  // namespace godwit::node::http
