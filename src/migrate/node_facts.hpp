#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace godwit::migrate {

/// What a process may have come to rely on in the machine under it.
struct NodeFacts {
  std::string kernel;  ///< uname -r
  std::string
      vdso;  ///< SHA-256 of the vdso's content and of the sizes of the kernel's mappings: programs keep addresses in it
  std::uint64_t xfeatures = 0;  ///< XCR0
  std::vector<std::string> cpu_flags;

  static Result<NodeFacts> read();
  /// Connections for pages that pay on this machine: one per two processors, one to four.
  [[nodiscard]] std::uint32_t page_connections() const;
};

}  // namespace godwit::migrate
