#include "node/rules.hpp"

#include <gtest/gtest.h>
#include <linux/capability.h>

#include "kernel/capabilities.hpp"
#include "node/caller.hpp"

namespace godwit::node {
namespace {

const pod::User root, alice{4001, 4001, {4001, 4100}}, bob{4002, 4002, {4002}};

Rules rules_of(const std::string& text) {
  const auto config = parse_config("node = \"a\"\nplain = true\nkey = \"0123456789abcdef\"\n" + text, "test");
  EXPECT_TRUE(config) << config.error().message();
  return Rules::from(*config).value();
}

TEST(Rules, UsersAreNamedInManyWays) {
  const auto contains = [](const char* word, const pod::User& user) { return Users::from({word})->contains(user); };
  EXPECT_TRUE(contains("*", bob));
  EXPECT_TRUE(contains("root", root));
  EXPECT_FALSE(contains("root", alice));
  EXPECT_TRUE(contains("4001", alice));
  EXPECT_TRUE(contains("4000-4001", alice));
  EXPECT_FALSE(contains("4000-4001", bob));
  EXPECT_TRUE(contains("@4100", alice));
  EXPECT_FALSE(contains("@4100", bob));
  for (const char* wrong : {"4001-4000", "no-such-user", "@no-such-group", "", "@", "1-", "99999999999"})
    EXPECT_FALSE(Users::from({wrong})) << wrong;
}

TEST(Rules, OnlyRootRunsForOthersAndGivesCapabilities) {
  const auto rules = rules_of("[users]\nrun = [\"4001\"]\nmove = [\"4002\"]\n");
  EXPECT_TRUE(rules.may_run(root, bob, 0));
  EXPECT_TRUE(rules.may_run(root, root, kernel::capability(CAP_KILL)));
  EXPECT_TRUE(rules.may_run(alice, alice, 0));
  EXPECT_FALSE(rules.may_run(alice, root, 0));
  EXPECT_FALSE(rules.may_run(alice, alice, kernel::capability(CAP_KILL)));
  // In another group than her own she would be somebody else.
  EXPECT_FALSE(rules.may_run(alice, {4001, 0, {}}, 0));
  EXPECT_FALSE(rules.may_run(bob, bob, 0));
  EXPECT_TRUE(rules.may_move(root));
  EXPECT_TRUE(rules.may_move(bob));
  EXPECT_FALSE(rules.may_move(alice));
}

TEST(Rules, ByDefaultOnlyRootRunsAndPeersAreTrusted) {
  const auto rules = rules_of("[[peers]]\nname = \"b\"\naddress = \"10.0.0.1\"\n");
  EXPECT_FALSE(rules.may_run(alice, alice, 0));
  EXPECT_TRUE(rules.may_speak(Sender{"b", {}}, root));
  EXPECT_TRUE(rules.may_send("b"));
  EXPECT_TRUE(rules.against(Sender{"b", {}}, {}).empty());
  EXPECT_FALSE(rules.against(Sender{"x", {}}, {}).empty());
  EXPECT_FALSE(rules.may_speak(Sender{"x", {}}, alice));
}

TEST(Rules, APeerIsTrustedAsFarAsTheConfigSays) {
  const auto rules = rules_of(
      "[[peers]]\nname = \"b\"\naddress = \"10.0.0.1\"\nsend = false\nusers = [\"4000-4001\"]\n"
      "capabilities = [\"CHOWN\"]\n"
      "[[peers]]\nname = \"c\"\naddress = \"10.0.0.2\"\nreceive = false\n");
  EXPECT_FALSE(rules.may_send("b"));
  EXPECT_TRUE(rules.may_send("c"));
  EXPECT_TRUE(rules.may_speak(Sender{"b", {}}, alice));
  EXPECT_FALSE(rules.may_speak(Sender{"b", {}}, bob));
  EXPECT_FALSE(rules.may_speak(Sender{"b", {}}, root));
  control::Needs needs{.user = 4001};
  EXPECT_TRUE(rules.against(Sender{"b", {}}, needs).empty());
  EXPECT_EQ(rules.against(Sender{"c", {}}, needs).size(), 1u);
  needs.capabilities = kernel::capability(CAP_CHOWN);
  EXPECT_TRUE(rules.against(Sender{"b", {}}, needs).empty());
  needs.capabilities |= kernel::capability(CAP_KILL);
  EXPECT_NE(rules.against(Sender{"b", {}}, needs).front().text.find("CAP_KILL"), std::string::npos);
  needs.user = 0;
  EXPECT_EQ(rules.against(Sender{"b", {}}, needs).size(), 2u);
  // What no pod can have here is refused whoever sends it.
  needs = {.user = 0, .capabilities = 1ULL << 62};
  EXPECT_EQ(rules.against(Sender{"b", {}}, needs).size(), 3u);
}

TEST(Rules, ACertificateBoundsWhatTheConfigAllows) {
  const auto rules = rules_of("[[peers]]\nname = \"b\"\naddress = \"10.0.0.1\"\nusers = [\"4001-4002\"]\n");
  const Sender b{"b", {{"users", "4000-4001,4003"}, {"capabilities", "CHOWN,KILL"}, {"zone", "x"}}};
  EXPECT_TRUE(rules.may_speak(b, alice));
  EXPECT_FALSE(rules.may_speak(b, bob));
  EXPECT_FALSE(rules.may_speak(b, {4003, 4003, {}}));
  EXPECT_TRUE(rules.against(b, {.user = 4001}).empty());
  EXPECT_NE(rules.against(b, {.user = 4002}).front().text.find("certificate"), std::string::npos);
  EXPECT_EQ(rules.against(b, {.user = 4001, .capabilities = kernel::capability(CAP_CHOWN)}).size(), 0u);
  EXPECT_EQ(rules.against(b, {.user = 4001, .capabilities = kernel::capability(CAP_SYS_PTRACE)}).size(), 1u);
  // What this machine can't understand allows nothing.
  EXPECT_FALSE(rules.may_speak({"b", {{"users", "somebody-elsewhere"}}}, alice));
  EXPECT_FALSE(rules.may_speak({"b", {{"users", ""}}}, alice));
  EXPECT_EQ(rules.against({"b", {{"capabilities", "FLY"}}}, {.user = 4001, .capabilities = 1}).size(), 1u);
}

TEST(Rules, APeerGivesNobodyOtherGroupsThanThisMachine) {
  const auto rules = rules_of(
      "[[peers]]\nname = \"b\"\naddress = \"10.0.0.1\"\nusers = [\"4000-4999\", \"daemon\"]\n"
      "[[peers]]\nname = \"c\"\naddress = \"10.0.0.2\"\n");
  const Sender b{"b", {}}, c{"c", {}};
  // Without an account: the group of its own number, and none that has a name here.
  EXPECT_TRUE(rules.may_speak(b, {4000, 4000, {}}));
  EXPECT_TRUE(rules.may_speak(b, alice));
  EXPECT_FALSE(rules.may_speak(b, {4000, 0, {42, 6}}));
  EXPECT_FALSE(rules.may_speak(b, {4000, 4000, {0}}));
  EXPECT_FALSE(rules.may_speak(b, {4000, 4001, {}}));
  // With one: what the machine's lists say.
  const auto account = pod::user_named("daemon").value();
  pod::User more = account, other = account;
  more.groups.push_back(0);
  other.gid = 0;
  EXPECT_TRUE(rules.may_speak(b, account));
  EXPECT_TRUE(rules.may_speak(b, {account.uid, account.gid, {}}));
  EXPECT_FALSE(rules.may_speak(b, more));
  EXPECT_FALSE(rules.may_speak(b, other));
  // Whoever may speak for root may do that, too; as long as the certificate says so as well.
  EXPECT_TRUE(rules.may_speak(c, more));
  EXPECT_TRUE(rules.may_speak(c, {4000, 0, {42, 6}}));
  EXPECT_FALSE(rules.may_speak({"c", {{"users", "4000-4999"}}}, {4000, 0, {42, 6}}));
}

TEST(Rules, APeersWordPutsNobodyIntoAGroup) {
  const auto account = pod::user_named("daemon").value();
  const std::string group = "@" + std::to_string(account.gid);
  const auto rules =
      rules_of("[[peers]]\nname = \"b\"\naddress = \"10.0.0.1\"\nusers = [\"@0\", \"@4100\", \"" + group + "\"]\n");
  const Sender b{"b", {}};
  EXPECT_TRUE(rules.may_speak(b, account));
  EXPECT_TRUE(rules.may_speak(b, account.uid));
  EXPECT_TRUE(rules.against(b, {.user = account.uid}).empty());
  EXPECT_FALSE(rules.may_speak(b, alice));
  // Root is named, or nobody's.
  EXPECT_FALSE(rules.may_speak(b, root));
  EXPECT_FALSE(rules.may_speak(b, {0, account.gid, {}}));
  EXPECT_FALSE(rules.may_speak({"b", {{"users", group}}}, {0, account.gid, {}}));
  EXPECT_FALSE(rules.against(b, {.user = 0}).empty());
  // A number isn't in the group of the same number.
  EXPECT_FALSE(rules.may_speak(b, {4100, 4100, {4100}}));
  EXPECT_FALSE(rules.against(b, {.user = 4100}).empty());
}

TEST(Rules, ACallerIsReadBackAsWritten) {
  for (const auto& user : {root, alice, bob, pod::User{~0U, 1, {2, 3, 4}}})
    EXPECT_EQ(decode_user(encode_user(user)), user);
  for (const char* wrong :
       {"", "1", "1:", "1:2", "1:2:x", "1:2:3,", "1:2:,3", "a:2:", "1:2:3 ", "-1:2:", "99999999999:1:"})
    EXPECT_FALSE(decode_user(wrong)) << wrong;
}

}  // namespace
}  // namespace godwit::node
