#pragma once

#include <string>

#include "kernel/procfs.hpp"
#include "objects/thread_state.hpp"
#include "pod/spec.hpp"

/// What the processes of a pod may be: what its spec says, wherever it runs and whoever sends it. The destination
/// agrees to the spec before anything is built, and believes nothing that goes beyond it.
namespace godwit::migrate {

/// What in a thread's settings its pod has no right to; empty: nothing. In root's pods threads may be anybody, with the
/// pod's capabilities at most; in a user's pod all are that user, without capabilities and without a way to get any.
std::string beyond_rights(const pod::Spec&, const objects::ThreadSettings&);
/// The same of a process that runs here, from /proc: what a destination would object to.
std::string beyond_rights(const pod::Spec&, HostPid thread, const kernel::Status&);

}  // namespace godwit::migrate
