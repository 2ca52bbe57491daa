#pragma once

#include <vector>

#include "base/fd.hpp"
#include "pod/init_protocol.hpp"

namespace godwit::pod {

/// The life of a pod's PID 1, from its first instruction to its last. It builds the pod's root, then serves the daemon:
/// it starts and reaps processes, writes their output to the log, and keeps descriptors. Single-threaded: it never
/// waits for anything but in its poll.
[[noreturn]] void run_init(const Setup& setup, std::vector<Fd> descriptors);

}  // namespace godwit::pod
