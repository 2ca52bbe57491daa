#include "node/privileges.hpp"

#include <linux/capability.h>

#include <array>

namespace godwit::node {
namespace {

using enum Privilege::Weight;

constexpr std::array all{
    Privilege{CAP_SYS_ADMIN, "namespaces, the pods' mounts, userfaultfd, BPF, pids of our choice", essential},
    Privilege{CAP_SYS_PTRACE, "to stop, read and rebuild the pods' processes", essential},
    Privilege{CAP_SYS_TIME, "the clocks of a pod's time namespace; not this machine's own", essential},
    Privilege{CAP_SYS_CHROOT, "to enter a pod's mount namespace", essential},
    Privilege{CAP_NET_ADMIN, "network ports, the gate, TCP repair", essential},
    Privilege{CAP_NET_RAW, "packets that a pod was sent while it stood still; raw sockets", essential},
    Privilege{CAP_NET_BIND_SERVICE, "ports below 1024 that pods listen on", essential},
    Privilege{CAP_SETUID, "to give processes their users", essential},
    Privilege{CAP_SETGID, "to give processes their groups", essential},
    Privilege{CAP_SETPCAP, "to give processes their capabilities, and no more", essential},
    Privilege{CAP_CHOWN, "owners of the files that pods have written", essential},
    Privilege{CAP_DAC_OVERRIDE, "other users' files, to take them along", essential},
    Privilege{CAP_DAC_READ_SEARCH, "the same", essential},
    Privilege{CAP_FOWNER, "modes and times of other users' files", essential},
    Privilege{CAP_FSETID, "set-group-id files stay so", essential},
    Privilege{CAP_MKNOD, "a pod's /dev, and what its overlay has removed", essential},
    Privilege{CAP_KILL, "signals to other users' processes", essential},
    Privilege{CAP_SETFCAP, "files with capabilities keep them", useful},
    Privilege{CAP_SYS_NICE, "a short freeze under load; scheduling of the pods' threads", useful},
    Privilege{CAP_SYS_RESOURCE, "limits of other users' processes are set at once", useful},
    Privilege{CAP_IPC_LOCK, "locked memory beyond the limit", useful},
    Privilege{CAP_IPC_OWNER, "other users' System V objects", useful},
    Privilege{CAP_LEASE, "leases on files", of_pods},
    Privilege{CAP_AUDIT_WRITE, "login programs", of_pods},
    Privilege{CAP_WAKE_ALARM, "timers that wake the machine", of_pods},
};

}  // namespace

std::span<const Privilege> privileges() {
  return all;
}

Result<void> give_up_others() {
  kernel::Capabilities kept = 0;
  for (const auto& privilege : all) kept |= kernel::capability(privilege.capability);
  return kernel::keep_capabilities(kept);
}

}  // namespace godwit::node
