#pragma once

#include <array>
#include <vector>

#include "image/codec.hpp"
#include "kernel/remote.hpp"

namespace godwit::objects {

/// Who a thread is. Linux keeps this per thread: two threads of one process may differ.
struct Credentials {
  std::array<uid_t, 4> uids{};  ///< real, effective, saved, filesystem
  std::array<gid_t, 4> gids{};
  std::vector<gid_t> groups;
  std::uint64_t effective = 0, permitted = 0, inheritable = 0, ambient = 0, bounding = 0;  ///< capability sets
  std::uint32_t securebits = 0;
  bool operator==(const Credentials&) const = default;
  MSGPACK_DEFINE_MAP(uids, gids, groups, effective, permitted, inheritable, ambient, bounding, securebits)
};

/// Reads a thread's credentials by batch.
class CredentialsCapture {
 public:
  /// `sets`: the ambient and the bounding set too, two calls per capability (some 16 µs in all). Without them `take`
  /// leaves both empty.
  void ask(kernel::Batch&, bool sets);
  /// `tid` is read from /proc only when the thread is in more than 256 groups.
  Result<Credentials> take(const kernel::Batch&, HostPid tid) const;

 private:
  RemoteAddress uids_ = 0, gids_ = 0, groups_ = 0, capabilities_ = 0;
  kernel::Batch::Call uid_call_{}, gid_call_{}, filesystem_uid_{}, filesystem_gid_{}, groups_call_{}, capget_{},
      securebits_{};
  std::vector<kernel::Batch::Call> ambient_, bounding_;
};

/// Gives the thread that runs the batch its credentials. The thread must hold what it is to keep, CAP_SETPCAP,
/// CAP_SETUID and CAP_SETGID; after the batch it holds exactly what `credentials` says. `permitted_now`: the thread's
/// permitted set before (kernel::permitted_capabilities). Clears the dumpable flag and the parent-death signal as the
/// kernel does: set those afterwards.
void restore_credentials(kernel::Batch&, const Credentials& credentials, std::uint64_t permitted_now);

}  // namespace godwit::objects
