#include "node/json.hpp"

#include <gtest/gtest.h>

namespace godwit::node {
namespace {

std::string error_of(const char* text) {
  const auto json = parse_json(text);
  if (!json) return json.error().what;
  const auto wanted = new_pod_from(*json, {});
  return wanted ? std::string() : wanted.error().what;
}

TEST(ApiJson, NewPodIsRead) {
  const auto wanted = new_pod_from(
      *parse_json(
          R"({"name":"web","command":["nginx","-g","daemon off;"],"environment":["A=1"],"memory_limit":1048576,)"
          R"("cpu_limit":1.5,"terminal":true,"directory":"/srv"})"),
      {4001, 4001, {4100}});
  ASSERT_TRUE(wanted) << wanted.error().message();
  EXPECT_EQ(wanted->name, "web");
  EXPECT_EQ(wanted->program.arguments.size(), 3u);
  EXPECT_EQ(wanted->memory_limit, 1048576u);
  EXPECT_EQ(wanted->cpu_limit, 1.5);
  EXPECT_TRUE(wanted->program.terminal);
  EXPECT_EQ(wanted->program.directory, "/srv");
  EXPECT_EQ(wanted->user.groups, std::vector<std::uint32_t>{4100});
  EXPECT_EQ(wanted->capabilities, 0u);
}

TEST(ApiJson, WrongFieldsAreNamed) {
  EXPECT_NE(error_of("{").find("not JSON"), std::string::npos);
  EXPECT_NE(error_of("[]").find("object"), std::string::npos);
  EXPECT_NE(error_of("{}").find("'command'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":[]})").find("'command'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":"ls"})").find("'command'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":[1]})").find("'command'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["a\u0000b"]})").find("'command'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"name":7})").find("'name'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"environment":["A"]})").find("NAME=value"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"environment":["=A"]})").find("NAME=value"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"directory":"tmp"})").find("absolute"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"memory_limit":-1})").find("'memory_limit'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"memory_limit":"1G"})").find("'memory_limit'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"cpu_limit":-2})").find("'cpu_limit'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"terminal":"yes"})").find("'terminal'"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"user":"nobody-of-that-name"})").find("no user"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"capabilities":["FLY"]})").find("no capability"), std::string::npos);
  EXPECT_NE(error_of(R"({"command":["ls"],"user":"4001","capabilities":["KILL"]})").find("only root"),
            std::string::npos);
}

TEST(ApiJson, ErrorsSurviveTheWay) {
  for (int kind = 0; kind <= static_cast<int>(ErrorKind::cancelled); kind++) {
    const Error error{static_cast<ErrorKind>(kind), "open x", 2, "try y"};
    const auto back = error_in(*parse_json(dump(to_json(error))));
    ASSERT_TRUE(back);
    EXPECT_EQ(back->kind, error.kind);
    EXPECT_EQ(back->message(), error.message());
  }
  EXPECT_FALSE(error_in(*parse_json(R"({"name":"web"})")));
}

TEST(ApiJson, BytesThatAreNotTextDontThrow) {
  EXPECT_NE(dump(Json{{"command", std::string("\xff\xfe")}}).find("command"), std::string::npos);
}

}  // namespace
}  // namespace godwit::node
