#include "store/etcd.hpp"

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <thread>

#include "etcd_server.hpp"

namespace godwit::store {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// An endpoint that behaves as it is told. `serve` gets each connection, and the number of those before it.
class FakeEndpoint {
 public:
  using Serve = std::function<void(int fd, int number)>;
  explicit FakeEndpoint(Serve serve)
      : serve_(std::move(serve)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof name;
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&name), size), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this] {
      std::vector<std::jthread> workers;
      for (int number = 0;; number++) {
        const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) break;
        workers.emplace_back([this, fd, number] {
          const Fd mine(fd);
          serve_(mine.get(), number);
        });
      }
    });
  }
  ~FakeEndpoint() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  [[nodiscard]] std::string address() const { return fmt::format("127.0.0.1:{}", port_); }

 private:
  Serve serve_;
  Fd listener_;
  int port_ = 0;
  std::thread thread_;
};

void say(int fd, const std::string& text) {
  (void)!::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
}

std::string http(const std::string& body, const std::string& status = "200 OK") {
  return fmt::format("HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n{}", status, body.size(), body);
}

/// A request's head and body, off the socket.
bool hear(int fd, std::string& request) {
  request.clear();
  char buffer[65536];
  for (;;) {
    const std::size_t head = request.find("\r\n\r\n");
    const std::size_t length = request.find("Content-Length: ");
    if (head != std::string::npos && length != std::string::npos &&
        request.size() >= head + 4 + std::strtoul(request.c_str() + length + 16, nullptr, 10))
      return true;
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got <= 0) return false;
    request.append(buffer, static_cast<std::size_t>(got));
  }
}

EtcdPlace place_of(const std::vector<std::string>& addresses, const std::string& prefix = "/test") {
  std::string url = "etcd://";
  for (const auto& address : addresses) url += (url.size() > 7 ? "," : "") + address;
  auto place = EtcdPlace::parse(url + prefix);
  EXPECT_TRUE(place) << place.error().message();
  place->attempt_time = 200ms;
  place->call_time = 600ms;
  return *place;
}

Result<EtcdGateway::Answer> ask(const std::vector<std::string>& addresses) {
  return (*EtcdGateway::open(place_of(addresses)))->call("/v3/kv/range", Json::object());
}

TEST(EtcdPlace, IsTakenApart) {
  const auto place = EtcdPlace::parse("etcds://a:1,[fd66::1]:2,c/some/where/?ca=/ca.pem&cert=/c.pem&key=/k.pem");
  ASSERT_TRUE(place) << place.error().message();
  EXPECT_EQ(place->endpoints, (std::vector<Endpoint>{{"a", 1}, {"fd66::1", 2}, {"c", 2379}}));
  EXPECT_EQ(place->prefix, "/some/where");
  EXPECT_TRUE(place->tls);
  EXPECT_EQ(place->ca + place->certificate + place->key, "/ca.pem/c.pem/k.pem");
  EXPECT_EQ(EtcdPlace::parse("etcd://a")->prefix, "/godwit");
  for (const char* wrong : {"etcd", "etcd://", "etcd:///x", "etcd://a:0", "etcd://a:99999", "etcd://a:x", "etcd://[a:1",
                            "etcds://a?ca=relative", "etcds://a?user=/x", "etcds://a?cert=/x", "etcd://a?ca=/x"})
    EXPECT_FALSE(EtcdPlace::parse(wrong)) << wrong;
}

TEST(EtcdGateway, WhoDiesIsAskedNoMoreThanTheOthers) {
  const FakeEndpoint dies([](int fd, int) {
    std::string request;
    hear(fd, request);
  });
  const FakeEndpoint lives([](int fd, int) {
    std::string request;
    while (hear(fd, request)) say(fd, http(R"({"count":"7"})"));
  });
  const auto answer = ask({dies.address(), lives.address()});
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(number_in(answer->json, "count"), 7u);
  EXPECT_TRUE(answer->unsure) << "the first had the request";
  const auto refused = ask({"127.0.0.1:1", lives.address()});
  ASSERT_TRUE(refused);
  EXPECT_FALSE(refused->unsure) << "the first never had it";
}

TEST(EtcdGateway, SilenceHasAnEnd) {
  const FakeEndpoint silent([&](int fd, int) {
    char byte;
    while (::recv(fd, &byte, 1, 0) > 0) {
    }
  });
  const auto begin = Clock::now();
  const auto answer = ask({silent.address()});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().kind, ErrorKind::unreachable);
  EXPECT_GE(Clock::now() - begin, 200ms);
  EXPECT_LT(Clock::now() - begin, 5s);
}

/// What comes after the time-out isn't taken for the answer to the next question.
TEST(EtcdGateway, ALateAnswerIsNobodys) {
  const FakeEndpoint late([](int fd, int number) {
    std::string request;
    if (!hear(fd, request)) return;
    if (number == 0) std::this_thread::sleep_for(400ms);
    say(fd, http(fmt::format(R"({{"count":"{}"}})", number)));
  });
  const auto answer = ask({late.address()});
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(number_in(answer->json, "count"), 1u);
  EXPECT_TRUE(answer->unsure);
}

TEST(EtcdGateway, RubbishIsAnErrorAndNoMore) {
  const std::vector<std::string> rubbish{
      "",
      "\r\n\r\n",
      "rubbish\r\n\r\n",
      std::string(1 << 20, 'x'),
      "HTTP/1.1 200 OK\r\n" + std::string(1 << 20, 'h'),
      http("not json"),
      http("[]"),
      http("\xff\xfe"),
      "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
      "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
      http(R"({"code":14,"error":"etcdserver: no leader"})", "503 Service Unavailable"),
      "HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n" + std::string(20 << 20, ' ')};
  for (const auto& one : rubbish) {
    const FakeEndpoint endpoint([&](int fd, int) {
      std::string request;
      if (hear(fd, request)) say(fd, one);
    });
    const auto answer = ask({endpoint.address()});
    ASSERT_FALSE(answer) << one.substr(0, 100);
    EXPECT_EQ(answer.error().kind, ErrorKind::unreachable) << answer.error().message();
  }
}

TEST(EtcdGateway, ANoIsANo) {
  std::atomic<int> asked = 0;
  const FakeEndpoint full([&](int fd, int) {
    std::string request;
    while (hear(fd, request)) {
      asked++;
      say(fd, http(R"({"code":8,"error":"etcdserver: mvcc: database space exceeded"})", "429 Too Many Requests"));
    }
  });
  const auto answer = ask({full.address()});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().kind, ErrorKind::failed);
  EXPECT_NE(answer.error().message().find("space exceeded"), std::string::npos);
  EXPECT_EQ(asked, 1);
}

/// A real etcd behind a wire that loses the answers it is told to.
class LossyEtcdTest : public testing::Test {
 protected:
  void SetUp() override {
    server_ = EtcdServer::shared();
    if (server_.empty()) GTEST_SKIP() << "no etcd on this machine";
    prefix_ = fmt::format("/lossy-{}", Clock::now().time_since_epoch().count());
    direct_ = std::move(*open_etcd(place_of({server_}, prefix_)));
    wire_ = std::make_unique<FakeEndpoint>([this](int fd, int) { forward(fd); });
    store_ = std::move(*open_etcd(place_of({wire_->address()}, prefix_)));
    // One of its own questions has been answered: from here on we know what is lost.
    ASSERT_TRUE(store_->get("-"));
  }

  void forward(int fd) {
    auto up = Connection::open("127.0.0.1", static_cast<std::uint16_t>(std::atoi(server_.substr(10).c_str())), nullptr,
                               Clock::now() + 5s);
    std::string request;
    while (up && hear(fd, request)) {
      const bool write = request.starts_with("POST /v3/kv/txn");
      if (write) writes_++;
      if (!up->write(request, Clock::now() + 5s)) return;
      char buffer[65536];
      const auto got = up->read(buffer, sizeof buffer, Clock::now() + 5s);
      if (!got || *got == 0) return;
      if (write && lose_ > 0) {
        lose_--;
        return;
      }
      if (::send(fd, buffer, *got, MSG_NOSIGNAL) < 0) return;
    }
  }

  std::string server_, prefix_;
  std::atomic<int> lose_ = 0, writes_ = 0;
  std::unique_ptr<FakeEndpoint> wire_;  ///< ends when its clients have gone
  std::unique_ptr<Store> direct_, store_;
  Record redis_{"redis", "id-1", "a", 1, "10.66.0.21", "a"};
};

TEST_F(LossyEtcdTest, ACommitIsOneRoundTrip) {
  ASSERT_TRUE(store_->create(redis_));
  writes_ = 0;
  EXPECT_TRUE(*store_->move(redis_, "b"));
  EXPECT_EQ(writes_, 1);
}

TEST_F(LossyEtcdTest, WhatWasDoneIsFoundOutAboutWhenItsAnswerIsLost) {
  lose_ = 1;
  ASSERT_TRUE(store_->create(redis_));
  lose_ = 1;
  EXPECT_TRUE(*store_->move(redis_, "b"));
  EXPECT_EQ((**direct_->get("redis")).epoch, 2u) << "moved once";
  EXPECT_FALSE(*store_->move(redis_, "b")) << "without a loss the same expectation holds once";
  Record moved = redis_;
  moved.owner = "b";
  moved.epoch = 2;
  lose_ = 1;
  EXPECT_TRUE(*store_->remove(moved));
  EXPECT_FALSE(*direct_->get("redis"));
}

TEST_F(LossyEtcdTest, ALossDoesntTurnANoIntoAYes) {
  ASSERT_TRUE(store_->create(redis_));
  ASSERT_TRUE(*direct_->move(redis_, "c"));
  lose_ = 1;
  EXPECT_FALSE(*store_->move(redis_, "b"));
  lose_ = 1;
  EXPECT_FALSE(*store_->remove(redis_));
  lose_ = 1;
  const auto taken = store_->create({"redis", "id-2", "b", 1, "", "b"});
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().kind, ErrorKind::busy);
}

TEST_F(LossyEtcdTest, WithoutAnyAnswerItIsUnreachable) {
  ASSERT_TRUE(store_->create(redis_));
  lose_ = 1000;
  const auto moved = store_->move(redis_, "b");
  ASSERT_FALSE(moved);
  EXPECT_EQ(moved.error().kind, ErrorKind::unreachable);
}

/// A certificate for what `arguments` say, signed by ca.pem in `directory` (itself, when it is "ca").
void make_certificate(const std::string& directory, const std::string& name, const std::string& extension) {
  const std::string sign = name == "ca" ? "" : fmt::format(" -CA {0}/ca.pem -CAkey {0}/ca.key", directory);
  const std::string command = fmt::format(
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={1} -keyout "
      "{0}/{1}.key "
      "-out {0}/{1}.pem {2} {3} 2>/dev/null",
      directory, name, extension, sign);
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

TEST(EtcdTls, BothSidesShowACertificate) {
  if (::access(EtcdServer::binary, X_OK) != 0) GTEST_SKIP() << "no etcd on this machine";
  ::signal(SIGPIPE, SIG_IGN);
  char pattern[] = "/tmp/godwit-tls-XXXXXX";
  const std::string directory = ::mkdtemp(pattern);
  make_certificate(directory, "ca", "");
  make_certificate(directory, "server", "-addext subjectAltName=IP:127.0.0.1");
  make_certificate(directory, "client", "");
  make_certificate(directory, "wrong", "-addext subjectAltName=IP:127.0.0.2");
  {
    const auto file = [&](const char* name) { return fmt::format("{}/{}", directory, name); };
    const EtcdServer server({"--cert-file", file("server.pem"), "--key-file", file("server.key"), "--client-cert-auth",
                             "--trusted-ca-file", file("ca.pem")},
                            "https");
    const EtcdServer other({"--cert-file", file("wrong.pem"), "--key-file", file("wrong.key")}, "https");
    ASSERT_TRUE(server.wait() && other.wait());
    const std::string trust = "?ca=" + file("ca.pem");
    const std::string mine = trust + "&cert=" + file("client.pem") + "&key=" + file("client.key");
    auto store = open_etcd("etcds://" + server.address() + mine);
    ASSERT_TRUE(store) << store.error().message();
    const auto created = (*store)->create({"redis", "id-1", "a", 1, "", "a"});
    EXPECT_TRUE(created) << created.error().message();
    EXPECT_TRUE((*store)->get("redis")->has_value());

    const auto says = [](const std::string& url) {
      const auto found = (*open_etcd(url))->get("redis");
      return found ? std::string("yes") : found.error().message();
    };
    EXPECT_NE(says("etcds://" + server.address() + trust), "yes") << "a client without a certificate";
    EXPECT_NE(says("etcds://" + other.address() + mine).find("certificate"), std::string::npos) << "another's name";
    EXPECT_NE(says("etcds://" + server.address()).find("certificate"), std::string::npos) << "an unknown authority";
    EXPECT_NE(says("etcd://" + server.address()), "yes") << "in plain text";
    EXPECT_FALSE(open_etcd("etcds://" + server.address() + "?ca=/nowhere.pem"));
  }
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace godwit::store
