#pragma once

#include <span>
#include <string_view>

#include "kernel/capabilities.hpp"

/// What the daemon may do to the machine, and why.
namespace godwit::node {

struct Privilege {
  int capability;
  std::string_view purpose;
  enum class Weight {
    essential,  ///< godwit can't do without
    useful,     ///< what is lost is said by `purpose`
    of_pods,    ///< not for ourselves: root's pods may need it, and get no more than we have
  } weight;
};

/// All that the daemon keeps. ARCHITECTURE.md shows the same list.
std::span<const Privilege> privileges();

/// Everything else is given up, for us and for all that we start. Before any thread is made.
Result<void> give_up_others();

}  // namespace godwit::node
