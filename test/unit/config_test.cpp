#include "node/config.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

namespace godwit::node {
namespace {

const char* key = "0123456789abcdef";

std::string error_of(const std::string& text) {
  const auto config = parse_config(text, "test.toml");
  return config ? std::string() : config.error().message();
}

TEST(Config, EmptyFileHasDefaults) {
  const auto config = parse_config("", "test.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->port, 4070);
  EXPECT_EQ(config->state_dir, "/var/lib/godwit");
  EXPECT_EQ(config->socket.path, "/run/godwit/godwit.sock");
  EXPECT_EQ(config->socket.mode, 0600u);
  EXPECT_FALSE(config->node.empty());
}

TEST(Config, WrittenConfigReadsBackTheSame) {
  Config config;
  config.node = "a";
  config.peers = {{"b", "10.66.0.2:4070"}, {"c", "[fd66::3]:5000"}};
  config.plain = true;
  config.key = "quote \" and backslash \\ in a key";
  config.store = "peer:b";
  config.cgroup = "/sys/fs/cgroup/x";
  config.socket = {"/run/x.sock", 0660, "staff"};
  config.network = {"br0", "10.66.0.0/16", "fd66::/64", "10.66.1.0/24", "10.66.0.254", "fd66::fe"};
  config.labels = {{"zone", "x"}, {"with space", "y"}};
  config.groups = {{"rack1", {"a", "b"}}, {"rack2", {"c"}}};
  config.guests = false;
  config.most_pods = 7;
  config.page_patience = 30;
  const auto read = parse_config(write_config(config), "test.toml");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, config);
  config.plain = false;
  config.key.clear();
  config.tls = Config::Tls{"/a/authority.pem", "/b/node.pem", "/b/node.key", std::chrono::seconds(90)};
  const auto trusting = parse_config(write_config(config), "test.toml");
  ASSERT_TRUE(trusting) << trusting.error().message();
  EXPECT_EQ(*trusting, config);
}

TEST(Config, UnknownKeyIsNamedWithItsLine) {
  EXPECT_NE(error_of("node = \"a\"\n\nprot = 4070\n").find("test.toml:3: unknown key 'prot'"), std::string::npos);
  EXPECT_NE(error_of("[network]\nbrigde = \"x\"\n").find("test.toml:2: unknown key 'brigde' in [network]"),
            std::string::npos);
}

TEST(Config, WrongValuesAreNamedWithTheirLine) {
  EXPECT_NE(error_of("port = 70000").find("test.toml:1: port"), std::string::npos);
  EXPECT_NE(error_of("port = \"4070\"").find("test.toml:1: port"), std::string::npos);
  EXPECT_NE(error_of("\nlisten = \"here\"").find("test.toml:2: listen"), std::string::npos);
  EXPECT_NE(error_of("[socket]\nmode = \"0999\"").find("test.toml:2: socket.mode"), std::string::npos);
  EXPECT_NE(error_of("[network]\nsubnet4 = \"10.66.0.0\"").find("test.toml:2: network.subnet4"), std::string::npos);
  EXPECT_NE(error_of("[network]\nsubnet6 = \"10.66.0.0/16\"").find("network.subnet6"), std::string::npos);
  EXPECT_NE(error_of("node = \"A B\"").find("not a name"), std::string::npos);
  EXPECT_NE(error_of("store = \"etcd\"").find("store"), std::string::npos);
  EXPECT_NE(error_of("guests = 1").find("test.toml:1: guests"), std::string::npos);
  EXPECT_NE(error_of("node = \"a\"\n[groups]\nany = [\"a\"]").find("group 'any'"), std::string::npos);
  EXPECT_NE(error_of("node = \"a\"\n[groups]\nrack = [\"b\"]").find("'b', which is no node"), std::string::npos);
  EXPECT_NE(error_of("node = \"a\"\n[groups]\nrack = \"a\"").find("test.toml:3: groups.rack"), std::string::npos);
  EXPECT_NE(error_of("node = ").find("test.toml:1"), std::string::npos);
  EXPECT_NE(error_of("plain = true\nkey = \"short\"").find("16 characters"), std::string::npos);
}

TEST(Config, PeersNeedTrustAndSense) {
  const std::string peer = "[[peers]]\nname = \"b\"\naddress = \"h:1\"\n";
  const std::string only_key = std::string("node = \"a\"\nkey = \"") + key + "\"\n";
  const std::string with_key = "plain = true\n" + only_key;
  EXPECT_NE(error_of("node = \"a\"\n" + peer).find("neither [tls] nor plain"), std::string::npos);
  EXPECT_NE(error_of("node = \"a\"\nplain = true\n" + peer).find("without key"), std::string::npos);
  EXPECT_NE(error_of(only_key + peer).find("a key is for plain = true"), std::string::npos);
  EXPECT_NE(error_of(with_key + "[tls]\n" + peer).find("exclude each other"), std::string::npos);
  EXPECT_EQ(error_of("node = \"a\"\n" + peer + "[tls]\nlifetime = \"12h\"\n"), "");
  EXPECT_NE(error_of("[tls]\nlifetime = \"soon\"\n").find("tls.lifetime"), std::string::npos);
  EXPECT_NE(error_of("[tls]\nkey = \"node.key\"\n").find("absolute"), std::string::npos);
  EXPECT_EQ(error_of(with_key + peer), "");
  EXPECT_NE(error_of(with_key + peer + peer).find("twice"), std::string::npos);
  EXPECT_NE(error_of(with_key + "[[peers]]\nname = \"a\"\naddress = \"h:1\"\n").find("itself"), std::string::npos);
  EXPECT_NE(error_of(with_key + "[[peers]]\nname = \"b\"\naddress = \"h:0\"\n").find("test.toml:4"), std::string::npos);
  EXPECT_NE(error_of(with_key + "store = \"peer:x\"\n" + peer).find("names no peer"), std::string::npos);
}

TEST(Config, KeyFileMustBePrivate) {
  char path[] = "/tmp/godwit-key-XXXXXX";
  const int fd = mkstemp(path);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(write(fd, "0123456789abcdef\n", 17), 17);
  ASSERT_EQ(fchmod(fd, 0644), 0);
  const std::string text = std::string("plain = true\nkey_file = \"") + path + "\"";
  EXPECT_NE(error_of(text).find("can be read by others"), std::string::npos);
  ASSERT_EQ(fchmod(fd, 0600), 0);
  const auto config = parse_config(text, "test.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->key, key);
  close(fd);
  unlink(path);
}

TEST(Config, Addresses) {
  EXPECT_EQ(split_address("h")->second, 4070);
  EXPECT_EQ(split_address("h:12")->second, 12);
  EXPECT_EQ(split_address("[fd66::1]:12")->first, "fd66::1");
  EXPECT_EQ(split_address("fd66::1")->first, "fd66::1");
  EXPECT_FALSE(split_address(""));
  EXPECT_FALSE(split_address("h:"));
  EXPECT_FALSE(split_address("h:70000"));
  EXPECT_FALSE(split_address("[fd66::1"));
}

}  // namespace
}  // namespace godwit::node
