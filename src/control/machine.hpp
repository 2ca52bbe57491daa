#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/codec.hpp"

namespace godwit::control {

/// What a process may have come to rely on in the machine under it.
struct Machine {
  std::string kernel;  ///< uname -r; for people
  std::string
      vdso;  ///< SHA-256 of the vdso's content and of the sizes of the kernel's mappings: programs keep addresses in it
  std::uint64_t xfeatures = 0;         ///< XCR0: register state that may be in use
  std::vector<std::string> cpu_flags;  ///< of /proc/cpuinfo, sorted
  MSGPACK_DEFINE_MAP(kernel, vdso, xfeatures, cpu_flags)
};

inline constexpr std::size_t most_cpu_flags = 1024;
inline constexpr std::size_t machine_text_limit = 128;  ///< characters of each text in it

/// False for what no node of ours would say of its machine: too long, or not printable.
bool plausible(const Machine&);

/// What `node`, whose machine is `here`, lacks for a pod that has run on `needed`: a sentence for each kind of thing,
/// with names. Empty: nothing.
std::vector<std::string> lacking(const std::string& node, const Machine& here, const Machine& needed);

}  // namespace godwit::control
