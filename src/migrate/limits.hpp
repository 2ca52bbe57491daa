#pragma once

#include "migrate/wire.hpp"

/// What every source of ours keeps to. A message that doesn't is `invalid` before anything is done with it; what is
/// well-formed, but can't be had, the kernel refuses in the pod's own processes.
namespace godwit::migrate {

/// Names that become those of directories and cgroups, and lengths.
Result<void> check(const wire::Hello&);
/// Times that can be reckoned with.
Result<void> check(const wire::Clock&);
Result<void> check(const wire::Prepare&);
/// Its output is frames of output.
Result<void> check(const pod::Execution&);
/// Numbers of processes and threads, each there once, parents before children; layouts in order and in user space.
Result<void> check(const wire::Round&);
/// The round, and ranges that lie in user space, each page in at most one of them; what is owed fits into this machine.
Result<void> check(const wire::Last&);
Result<void> check(const wire::Freezing&);
Result<void> check(const wire::State&);
/// Of a destination: times that can be reckoned with, spans that are few and have short names.
Result<void> check(const wire::Running&);
Result<void> check(const wire::Spans&);
/// Numbers of descriptors.
Result<void> check(const std::vector<objects::Holder>&);

/// The other side's words, as they are shown and written down: of a sensible length, and on one line.
std::string shown(const std::string& words);
/// The same of its reasons, and not too many of them.
std::vector<std::string> shown(const std::vector<std::string>& reasons);

/// Bytes of shared anonymous memory of one pod: they are reserved, not used, in the daemon's own address space.
inline constexpr std::uint64_t most_shared = std::uint64_t{1} << 42;

}  // namespace godwit::migrate
