#include "migrate/rights.hpp"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sched.h>

#include "kernel/capabilities.hpp"

namespace godwit::migrate {
namespace {

using kernel::capability;

pod::Spec of_alice() {
  pod::Spec spec;
  spec.user = {4001, 4001, {4001, 4100}};
  return spec;
}

objects::ThreadSettings alice() {
  objects::ThreadSettings settings;
  settings.credentials.uids.fill(4001);
  settings.credentials.gids.fill(4001);
  settings.credentials.groups = {4100};
  settings.no_new_privileges = true;
  return settings;
}

TEST(Rights, AUsersThreadsAreThatUser) {
  EXPECT_EQ(beyond_rights(of_alice(), alice()), "");
  for (std::size_t which = 0; which < 4; ++which) {
    auto other = alice();
    other.credentials.uids[which] = 0;
    EXPECT_NE(beyond_rights(of_alice(), other).find("user 0"), std::string::npos) << which;
    other = alice();
    other.credentials.gids[which] = 27;
    EXPECT_NE(beyond_rights(of_alice(), other).find("group 27"), std::string::npos) << which;
    other.credentials.gids[which] = 4100;
    EXPECT_EQ(beyond_rights(of_alice(), other), "") << which;
  }
  auto member = alice();
  member.credentials.groups.push_back(0);
  EXPECT_NE(beyond_rights(of_alice(), member).find("group 0"), std::string::npos);
}

TEST(Rights, AUsersThreadsHaveNoWayToMore) {
  auto open = alice();
  open.no_new_privileges = false;
  EXPECT_NE(beyond_rights(of_alice(), open).find("no_new_privs"), std::string::npos);
  auto hasty = alice();
  hasty.scheduling.policy = SCHED_FIFO;
  EXPECT_NE(beyond_rights(of_alice(), hasty).find("before others"), std::string::npos);
  hasty = alice();
  hasty.scheduling.nice = -1;
  EXPECT_NE(beyond_rights(of_alice(), hasty).find("before others"), std::string::npos);
}

TEST(Rights, CapabilitiesAreThePodsAtMost) {
  const auto kill = capability(CAP_KILL), chown = capability(CAP_CHOWN);
  pod::Spec spec;
  spec.capabilities = chown;
  objects::ThreadSettings settings;
  settings.credentials.uids = {0, 1000, 33, 0};
  for (auto set :
       {&objects::Credentials::effective, &objects::Credentials::permitted, &objects::Credentials::inheritable,
        &objects::Credentials::ambient, &objects::Credentials::bounding}) {
    settings.credentials.*set = chown;
    EXPECT_EQ(beyond_rights(spec, settings), "");
    settings.credentials.*set |= kill;
    EXPECT_NE(beyond_rights(spec, settings).find("CAP_KILL"), std::string::npos);
    settings.credentials.*set = 0;
  }
  // One that no kernel knows yet is none, either.
  settings.credentials.bounding = 1ULL << 63;
  EXPECT_NE(beyond_rights(spec, settings), "");
}

}  // namespace
}  // namespace godwit::migrate
