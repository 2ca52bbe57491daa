#include "objects/credentials.hpp"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/capabilities.hpp"
#include "kernel/procfs.hpp"

namespace godwit::objects {
namespace {

using Capabilities = std::array<__user_cap_data_struct, 2>;
constexpr std::size_t groups_in_batch = 256;

constexpr std::uint64_t join(std::uint32_t low, std::uint32_t high) {
  return low | static_cast<std::uint64_t>(high) << 32;
}

RemoteAddress header(kernel::Batch& batch) {
  return batch.value(__user_cap_header_struct{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0});
}

void set_capabilities(kernel::Batch& batch, std::uint64_t effective, std::uint64_t permitted,
                      std::uint64_t inheritable) {
  const auto part = [&](int shift) {
    return __user_cap_data_struct{.effective = static_cast<std::uint32_t>(effective >> shift),
                                  .permitted = static_cast<std::uint32_t>(permitted >> shift),
                                  .inheritable = static_cast<std::uint32_t>(inheritable >> shift)};
  };
  batch.must("capset", SYS_capset, {header(batch), batch.value(Capabilities{part(0), part(32)})});
}

}  // namespace

void CredentialsCapture::ask(kernel::Batch& batch, bool sets) {
  uids_ = batch.space(3 * sizeof(uid_t));
  gids_ = batch.space(3 * sizeof(gid_t));
  groups_ = batch.space(groups_in_batch * sizeof(gid_t));
  capabilities_ = batch.space(sizeof(Capabilities));
  uid_call_ = batch.call(SYS_getresuid, {uids_, uids_ + 4, uids_ + 8});
  gid_call_ = batch.call(SYS_getresgid, {gids_, gids_ + 4, gids_ + 8});
  // An id that is no id changes nothing and answers with the current one.
  filesystem_uid_ = batch.call(SYS_setfsuid, {0xffffffffU});
  filesystem_gid_ = batch.call(SYS_setfsgid, {0xffffffffU});
  groups_call_ = batch.call(SYS_getgroups, {groups_in_batch, groups_});
  capget_ = batch.call(SYS_capget, {header(batch), capabilities_});
  securebits_ = batch.call(SYS_prctl, {PR_GET_SECUREBITS});
  ambient_.clear();
  bounding_.clear();
  for (int capability = 0; sets && capability <= kernel::last_capability(); ++capability) {
    const auto number = static_cast<std::uint64_t>(capability);
    ambient_.push_back(batch.call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, number}));
    bounding_.push_back(batch.call(SYS_prctl, {PR_CAPBSET_READ, number}));
  }
}

Result<Credentials> CredentialsCapture::take(const kernel::Batch& batch, HostPid tid) const {
  if (batch.result(uid_call_) < 0 || batch.result(gid_call_) < 0 || batch.result(capget_) < 0 ||
      batch.result(securebits_) < 0)
    return fail(ErrorKind::failed, "read the credentials of thread {}", tid.value);
  Credentials result;
  const auto uids = batch.read<std::array<uid_t, 3>>(uids_);
  const auto gids = batch.read<std::array<gid_t, 3>>(gids_);
  result.uids = {uids[0], uids[1], uids[2], static_cast<uid_t>(batch.result(filesystem_uid_))};
  result.gids = {gids[0], gids[1], gids[2], static_cast<gid_t>(batch.result(filesystem_gid_))};
  if (const long count = batch.result(groups_call_); count >= 0) {
    const auto groups = batch.read<std::array<gid_t, groups_in_batch>>(groups_);
    result.groups.assign(groups.begin(), groups.begin() + std::min<long>(count, groups_in_batch));
  } else {
    result.groups = TRY(kernel::read_status(tid)).groups;
  }
  const auto capabilities = batch.read<Capabilities>(capabilities_);
  result.effective = join(capabilities[0].effective, capabilities[1].effective);
  result.permitted = join(capabilities[0].permitted, capabilities[1].permitted);
  result.inheritable = join(capabilities[0].inheritable, capabilities[1].inheritable);
  result.securebits = static_cast<std::uint32_t>(batch.result(securebits_));
  for (std::size_t capability = 0; capability < ambient_.size(); ++capability) {
    if (batch.result(ambient_[capability]) == 1) result.ambient |= 1ULL << capability;
    if (batch.result(bounding_[capability]) == 1) result.bounding |= 1ULL << capability;
  }
  return result;
}

void restore_credentials(kernel::Batch& batch, const Credentials& wanted, std::uint64_t permitted_now) {
  const auto prctl = [&](std::string what, std::uint64_t option, std::uint64_t a = 0, std::uint64_t b = 0) {
    batch.must(std::move(what), SYS_prctl, {option, a, b});
  };
  batch.must("setgroups", SYS_setgroups,
             {wanted.groups.size(), batch.data({reinterpret_cast<const std::uint8_t*>(wanted.groups.data()),
                                                wanted.groups.size() * sizeof(gid_t)})});
  // Without this, leaving root would take the capabilities that the next steps need.
  prctl("hold capabilities across setresuid", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
  batch.must("setresgid", SYS_setresgid, {wanted.gids[0], wanted.gids[1], wanted.gids[2]});
  batch.must("setresuid", SYS_setresuid, {wanted.uids[0], wanted.uids[1], wanted.uids[2]});
  batch.call(SYS_setfsgid, {wanted.gids[3]});
  batch.call(SYS_setfsuid, {wanted.uids[3]});
  // Ambient capabilities must be inheritable and permitted when they are raised, and raising may be forbidden by the
  // final securebits; a dropped bounding set forbids adding inheritable ones. Hence: inheritable, ambient, bounding.
  prctl("clear ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
  set_capabilities(batch, permitted_now, permitted_now, wanted.inheritable);
  for (int capability = 0; capability <= kernel::last_capability(); ++capability) {
    const std::uint64_t bit = kernel::capability(capability);
    const auto number = static_cast<std::uint64_t>(capability);
    if ((wanted.ambient & bit) != 0) prctl("raise an ambient capability", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number);
    if ((wanted.bounding & bit) == 0) prctl("drop a bounding capability", PR_CAPBSET_DROP, number);
  }
  prctl("set securebits", PR_SET_SECUREBITS, wanted.securebits);
  set_capabilities(batch, wanted.effective, wanted.permitted, wanted.inheritable);
}

}  // namespace godwit::objects
