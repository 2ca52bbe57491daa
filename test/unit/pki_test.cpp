#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "node/authority.hpp"
#include "node/files.hpp"
#include "node/io.hpp"
#include "node/trust.hpp"

namespace godwit::node {
namespace {

using namespace std::chrono_literals;
using pki::Authority;
using pki::Labels;

/// A directory that is a node's: its files of [tls], and on the first one the authority's.
class Pki : public testing::Test {
 protected:
  Pki() {
    std::string name = "/tmp/godwit-pki-XXXXXX";
    base_ = ::mkdtemp(name.data());
    EXPECT_TRUE(pki::make_authority(base_ + "/first"));
  }
  ~Pki() override { std::filesystem::remove_all(base_); }

  Authority authority(const std::string& cluster = "first") { return Authority::open(base_ + "/" + cluster).value(); }

  Config config_of(const std::string& node) const {
    Config config;
    config.node = node;
    const std::string directory = base_ + "/of-" + node;
    config.tls = Config::Tls{directory + "/authority.pem", directory + "/node.pem", directory + "/node.key"};
    return config;
  }

  /// Gives `node` all that it needs.
  Config let_in(const std::string& node, const Labels& labels = {}, std::chrono::seconds life = 1h,
                const std::string& cluster = "first") {
    const Config config = config_of(node);
    auto by = authority(cluster);
    const auto key = pki::make_key().value();
    const auto request = pki::make_request(key.get()).value();
    const auto certificate = by.sign(request.get(), {node, labels}, life).value();
    EXPECT_TRUE(pki::install(*config.tls, pki::to_pem(by.certificate()), list(cluster), pki::to_pem(key.get()),
                             pki::to_pem(certificate.get())));
    return config;
  }

  std::string list(const std::string& cluster = "first") {
    return read_whole(base_ + "/" + cluster + "/expelled.pem", pki::list_limit).value();
  }

  static std::unique_ptr<Trust> trust(const Config& config) {
    auto opened = Trust::open(config);
    EXPECT_TRUE(opened) << opened.error().message();
    return opened ? std::move(*opened) : nullptr;
  }

  struct Met {
    Result<Stream> caller = fail(ErrorKind::failed, "nobody called");
    Result<Trust::Guest> called = fail(ErrorKind::failed, "nobody was called");
  };
  /// One calls the other, whom it takes for `name`.
  static Met meet(const Trust& caller, const Trust& called, const std::string& name) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    auto answer = std::async(std::launch::async, [&] { return called.accept(Fd(pair[1]), in(5s)); });
    auto stream = caller.connect(Fd(pair[0]), name, in(5s));
    if (!stream) ::shutdown(pair[0], SHUT_RDWR);
    return {std::move(stream), answer.get()};
  }

  std::string base_;
};

TEST_F(Pki, NodesOfOneClusterKnowEachOtherByName) {
  const auto a = trust(let_in("a")), b = trust(let_in("b", {{"zone", "x"}, {"secure", ""}}));
  auto met = meet(*a, *b, "b");
  ASSERT_TRUE(met.caller) << met.caller.error().message();
  ASSERT_TRUE(met.called) << met.called.error().message();
  EXPECT_EQ(met.called->name, "a");
  EXPECT_EQ(met.called->objection, "");
  EXPECT_EQ(pki::labels_of(pki::shown_certificate(*met.caller)), (Labels{{"zone", "x"}, {"secure", ""}}));
  // Both have the key of this session, and nobody has it twice.
  const std::string key = pki::session_key(*met.caller).value();
  EXPECT_EQ(pki::session_key(met.called->stream).value(), key);
  const auto again = meet(*a, *b, "b");
  ASSERT_TRUE(again.caller) << again.caller.error().message();
  EXPECT_NE(pki::session_key(*again.caller).value(), key);
  EXPECT_FALSE(pki::session_key(Stream()));
}

TEST_F(Pki, AnotherNodeThanWasMeantIsRefused) {
  const auto a = trust(let_in("a")), b = trust(let_in("b"));
  const auto met = meet(*a, *b, "c");
  ASSERT_FALSE(met.caller);
  EXPECT_EQ(met.caller.error().kind, ErrorKind::refused);
  EXPECT_NE(met.caller.error().what.find("node 'b' answers there, not 'c'"), std::string::npos);
}

TEST_F(Pki, AnotherAuthorityIsNotTrustedByEitherSide) {
  ASSERT_TRUE(pki::make_authority(base_ + "/second"));
  const auto a = trust(let_in("a")), stranger = trust(let_in("b", {}, 1h, "second"));
  const auto out = meet(*a, *stranger, "b");
  ASSERT_FALSE(out.caller);
  EXPECT_NE(out.caller.error().what.find("another authority"), std::string::npos) << out.caller.error().what;
  // The caller believes nobody either, so the called one hears of no objection; it must not have let anybody in.
  const auto in = meet(*stranger, *a, "a");
  EXPECT_FALSE(in.caller);
  EXPECT_TRUE(!in.called || !in.called->objection.empty());
}

TEST_F(Pki, ACertificateThatHasRunOutIsNoMore) {
  const auto a = trust(let_in("a"));
  const auto b = trust(let_in("b", {}, 1s));
  std::this_thread::sleep_for(2100ms);
  EXPECT_FALSE(b->credentials()->usable());
  const auto met = meet(*b, *a, "a");
  ASSERT_TRUE(met.called);
  EXPECT_NE(met.called->objection.find("was good until"), std::string::npos) << met.called->objection;
  const auto other = meet(*a, *b, "b");
  ASSERT_FALSE(other.caller);
  EXPECT_NE(other.caller.error().what.find("was good until"), std::string::npos);
}

TEST_F(Pki, WhoIsExpelledIsCutOffAtOnce) {
  const auto a = trust(let_in("a")), b = trust(let_in("b"));
  auto met = meet(*b, *a, "a");
  ASSERT_TRUE(met.called);
  ASSERT_TRUE(authority().expel("b"));
  const auto taken = a->install(list());
  ASSERT_TRUE(taken) << taken.error().message();
  EXPECT_TRUE(*taken);
  // The connection that was open is broken off.
  char byte = 0;
  ASSERT_TRUE(wait_for(met.caller->fd(), POLLIN, in(5s)));
  EXPECT_LE(met.caller->receive(&byte, 1), 0);
  EXPECT_NE(meet(*b, *a, "a").called->objection.find("expelled"), std::string::npos);
  EXPECT_FALSE(meet(*a, *b, "b").caller);
  // Again the same list, or an older one, changes nothing; and it is there after a restart.
  EXPECT_FALSE(*a->install(list()));
  EXPECT_EQ(trust(config_of("a"))->list_number(), 2u);
  // Only a new certificate lets it in again.
  const auto anew = trust(let_in("b"));
  EXPECT_TRUE(meet(*anew, *a, "a").called->objection.empty());
}

TEST_F(Pki, AListOfAnotherAuthorityIsNotBelieved) {
  ASSERT_TRUE(pki::make_authority(base_ + "/second"));
  const auto stranger = let_in("b", {}, 1h, "second");
  ASSERT_TRUE(authority("second").expel("b"));
  const auto a = trust(let_in("a"));
  EXPECT_FALSE(a->install(list("second")));
  EXPECT_FALSE(a->install("nonsense"));
  EXPECT_EQ(a->list_number(), 1u);
}

TEST_F(Pki, ATokenLetsOneNodeInOnce) {
  auto by = authority();
  const auto token = by.make_token({"b", {{"secure", ""}, {"users", "4000-4999"}}}, "a:4070", 1min).value();
  const auto read = pki::Token::parse(token.text());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->fingerprint, pki::fingerprint(by.certificate()));
  pki::Subject subject;
  const auto request = pki::make_request(pki::make_key().value().get()).value();
  const auto certificate = by.let_in(request.get(), read->secret, 1h, subject);
  ASSERT_TRUE(certificate) << certificate.error().message();
  EXPECT_EQ(pki::name_of(certificate->get()), "b");
  EXPECT_EQ(subject.name, "b");
  EXPECT_EQ(subject.labels, (Labels{{"secure", ""}, {"users", "4000-4999"}}));
  EXPECT_FALSE(by.redeem(read->secret));
  EXPECT_FALSE(by.redeem(std::string(32, '0')));
  EXPECT_FALSE(by.redeem("../authority.key"));
  const auto late = by.make_token({"b", {}}, "a:4070", -1s).value();
  EXPECT_FALSE(by.redeem(late.secret));
  // Who was expelled has no token either.
  let_in("b");
  const auto kept = by.make_token({"b", {}}, "a:4070", 1min).value();
  ASSERT_TRUE(by.expel("b"));
  EXPECT_FALSE(by.redeem(kept.secret));
  for (const auto& wrong : {std::string(), std::string("a/b"), token.text() + "0", token.address + "//" + token.secret})
    EXPECT_FALSE(pki::Token::parse(wrong)) << wrong;
}

TEST_F(Pki, ARenewalKeepsTheKeyAndIsNotForTheExpelled) {
  const auto config = let_in("b");
  const auto b = trust(config);
  const auto before = b->credentials();
  auto by = authority();
  const auto request = pki::make_request(before->key()).value();
  const auto serial = pki::serial_of(before->certificate());
  auto renewed = by.sign(request.get(), {"b", {}}, 2h, serial);
  ASSERT_TRUE(renewed) << renewed.error().message();
  ASSERT_TRUE(b->install(std::move(*renewed)));
  EXPECT_NE(pki::serial_of(b->credentials()->certificate()), serial);
  EXPECT_GT(pki::life_of(trust(config)->credentials()->certificate()).end, pki::life_of(before->certificate()).end);
  // One for another key, or in another name, isn't taken.
  const auto key = pki::make_key().value();
  EXPECT_FALSE(b->install(by.sign(pki::make_request(key.get()).value().get(), {"b", {}}, 1h).value()));
  EXPECT_FALSE(b->install(by.sign(request.get(), {"c", {}}, 1h).value()));
  ASSERT_TRUE(by.expel("b"));
  EXPECT_FALSE(by.sign(request.get(), {"b", {}}, 1h, serial));
}

TEST_F(Pki, RenewalsAreFewAndNotTooEarly) {
  auto by = authority();
  const auto fresh = trust(let_in("b"))->credentials();
  const auto early = by.renew(pki::make_request(fresh->key()).value().get(), fresh->certificate(), 1h);
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().kind, ErrorKind::refused);
  EXPECT_NE(early.error().message().find("is renewed from"), std::string::npos) << early.error().message();
  EXPECT_NE(early.error().message().find("join --again"), std::string::npos);
  const auto old = trust(let_in("b", {{"zone", "x"}}, 3s))->credentials();
  const auto request = pki::make_request(old->key()).value();
  std::this_thread::sleep_for(1100ms);
  for (std::size_t i = 0; i < pki::most_newer; i++) {
    const auto renewed = by.renew(request.get(), old->certificate(), 1h);
    ASSERT_TRUE(renewed) << renewed.error().message();
    EXPECT_EQ(pki::name_of(renewed->get()), "b");
    EXPECT_EQ(pki::labels_of(renewed->get()), (Labels{{"zone", "x"}}));
  }
  const auto more = by.renew(request.get(), old->certificate(), 1h);
  ASSERT_FALSE(more);
  EXPECT_NE(more.error().message().find("newer certificates"), std::string::npos) << more.error().message();
  // An operator's token is good all the same; and others have theirs.
  pki::Subject subject;
  const auto token = by.make_token({"b", {}}, "a:4070", 1min).value();
  EXPECT_TRUE(by.let_in(request.get(), token.secret, 1h, subject));
  const auto c = trust(let_in("c", {}, 3s))->credentials();
  std::this_thread::sleep_for(1100ms);
  EXPECT_TRUE(by.renew(pki::make_request(c->key()).value().get(), c->certificate(), 1h));
  ASSERT_TRUE(by.expel("c"));
  EXPECT_NE(by.renew(pki::make_request(c->key()).value().get(), c->certificate(), 1h).error().what.find("expelled"),
            std::string::npos);
}

TEST_F(Pki, AListThatNobodyCouldReadIsNotWritten) {
  let_in("b"), let_in("c");
  const auto end = std::chrono::duration_cast<std::chrono::seconds>((pki::Clock::now() + 1h).time_since_epoch());
  {
    std::ofstream issued(base_ + "/first/issued", std::ios::app);
    for (int i = 0; i < 30'000; i++) issued << fmt::format("4{:031X} {} b\n", i, end.count());
  }
  const std::string before = list();
  const auto expelled = authority().expel("b");
  ASSERT_FALSE(expelled);
  EXPECT_EQ(expelled.error().kind, ErrorKind::refused);
  EXPECT_EQ(list(), before);
  EXPECT_TRUE(authority().expel("c"));
}

TEST_F(Pki, ACutLineIsNotPartOfTheNext) {
  const std::string path = base_ + "/first/issued";
  let_in("b");
  std::ofstream(path, std::ios::app) << "4ABC 17";
  let_in("c");
  EXPECT_EQ(pki::serials_of(authority().expel("c").value().get()).size(), 1u);
  // A disk that is full in the middle of a line.
  const auto size = std::filesystem::file_size(path);
  rlimit unlimited{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const auto action = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit full{size + 10, unlimited.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
  const auto request = pki::make_request(pki::make_key().value().get()).value();
  const auto certificate = authority().sign(request.get(), {"d", {}}, 1h);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  ::signal(SIGXFSZ, action);
  EXPECT_FALSE(certificate);
  EXPECT_EQ(std::filesystem::file_size(path), size);
  EXPECT_FALSE(authority().expel("d"));
  let_in("d");
  EXPECT_TRUE(authority().expel("d"));
}

TEST_F(Pki, FilesThatDontBelongTogetherAreNamed) {
  const auto a = let_in("a"), b = let_in("b");
  const auto error_of = [](Config config) {
    const auto opened = Trust::open(config);
    return opened ? std::string() : opened.error().message();
  };
  Config mixed = a;
  mixed.tls->key = b.tls->key;
  EXPECT_NE(error_of(mixed).find("not that of the certificate"), std::string::npos);
  mixed = a;
  mixed.tls->certificate = b.tls->certificate, mixed.tls->key = b.tls->key;
  EXPECT_NE(error_of(mixed).find("that of node 'b'"), std::string::npos);
  mixed = a;
  mixed.tls->certificate += ".missing";
  EXPECT_NE(error_of(mixed).find("doesn't exist"), std::string::npos);
  EXPECT_NE(error_of(mixed).find("godwit join"), std::string::npos);
  ASSERT_EQ(::chmod(a.tls->key.c_str(), 0644), 0);
  EXPECT_NE(error_of(a), "");
}

TEST_F(Pki, OneDirectoryHasOneAuthority) {
  EXPECT_FALSE(pki::make_authority(base_ + "/first"));
  EXPECT_FALSE(Authority::open(base_ + "/nowhere"));
  EXPECT_FALSE(authority().expel("nobody"));
  const auto request = pki::make_request(pki::make_key().value().get()).value();
  for (const char* name : {"", "a b", "-x", "A"}) EXPECT_FALSE(authority().sign(request.get(), {name, {}}, 1h)) << name;
}

TEST_F(Pki, WhatIsMalformedIsNoCertificate) {
  const auto config = let_in("a");
  const auto pem = read_whole(config.tls->certificate, pki::pem_limit).value();
  ASSERT_TRUE(pki::parse_certificate(pem));
  for (const auto& wrong :
       {std::string(), std::string("x"), pem.substr(0, pem.size() / 2), std::string(pki::pem_limit + 1, 'A')}) {
    EXPECT_FALSE(pki::parse_certificate(wrong));
    EXPECT_FALSE(pki::parse_key(wrong));
    EXPECT_FALSE(pki::parse_request(wrong));
    EXPECT_FALSE(pki::parse_expelled(wrong));
  }
  for (const char* wrong : {"", "=x", "a\nb"}) EXPECT_FALSE(pki::parse_label(wrong)) << wrong;
}

}  // namespace
}  // namespace godwit::node
