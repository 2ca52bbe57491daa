#include "migrate/rights.hpp"

#include <sched.h>

#include <algorithm>

#include "kernel/capabilities.hpp"

namespace godwit::migrate {
namespace {

struct Facts {
  std::array<uid_t, 4> uids{};
  std::array<gid_t, 4> gids{};
  std::vector<gid_t> groups;
  std::uint64_t permitted = 0, inheritable = 0, bounding = 0;
  bool no_new_privileges = false;
  std::uint32_t policy = SCHED_OTHER;
  std::int32_t nice = 0;
};

std::string beyond(const pod::Spec& spec, const Facts& facts) {
  const auto capabilities = (facts.permitted | facts.inheritable | facts.bounding) & ~spec.capabilities;
  if (capabilities != 0)
    return fmt::format("it may use {}, which its pod may not",
                       kernel::to_text(capabilities & kernel::all_capabilities()));
  const auto& user = spec.user;
  if (user.is_root()) return {};
  for (const uid_t uid : facts.uids)
    if (uid != user.uid) return fmt::format("it runs as user {} in a pod of user {}", uid, user.uid);
  const auto member = [&](gid_t gid) { return gid == user.gid || std::ranges::count(user.groups, gid) > 0; };
  for (const gid_t gid : facts.gids)
    if (!member(gid)) return fmt::format("it is in group {}, which user {} isn't", gid, user.uid);
  for (const gid_t gid : facts.groups)
    if (!member(gid)) return fmt::format("it is in group {}, which user {} isn't", gid, user.uid);
  if (!facts.no_new_privileges) return "it can get privileges by exec: no_new_privs isn't set";
  const bool real_time = facts.policy == SCHED_FIFO || facts.policy == SCHED_RR || facts.policy == SCHED_DEADLINE;
  if (real_time || facts.nice < 0) return "it is scheduled before others, for which its user has no right";
  return {};
}

}  // namespace

std::string beyond_rights(const pod::Spec& spec, const objects::ThreadSettings& settings) {
  const auto& is = settings.credentials;
  return beyond(spec, {.uids = is.uids,
                       .gids = is.gids,
                       .groups = is.groups,
                       .permitted = is.permitted | is.effective | is.ambient,
                       .inheritable = is.inheritable,
                       .bounding = is.bounding,
                       .no_new_privileges = settings.no_new_privileges,
                       .policy = settings.scheduling.policy,
                       .nice = settings.scheduling.nice});
}

std::string beyond_rights(const pod::Spec& spec, HostPid thread, const kernel::Status& status) {
  Facts facts{.uids = status.uids,
              .gids = status.gids,
              .groups = status.groups,
              .permitted = status.cap_permitted,
              .inheritable = status.cap_inheritable,
              .bounding = status.cap_bounding,
              .no_new_privileges = status.no_new_privileges};
  if (!spec.user.is_root()) {
    // Who has ended in between says nothing.
    if (const auto scheduling = objects::scheduling_of(thread)) {
      facts.policy = scheduling->policy;
      facts.nice = scheduling->nice;
    }
  }
  return beyond(spec, facts);
}

}  // namespace godwit::migrate
