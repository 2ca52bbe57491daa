#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "node/config.hpp"

/// What `godwit check` tries.
namespace godwit::cli {

enum class Weight {
  essential,  ///< godwit doesn't work without it
  feature,    ///< something named doesn't
  speed,      ///< all works, slower
};

struct Check {
  std::string name;
  Weight weight = Weight::essential;
  std::string cost;  ///< what its lack means
  std::string fix;
  /// In a child process of its own, which may do what it likes to its namespaces. Nothing of it stays.
  std::function<Result<void>()> attempt;
};

/// All of them, in the order in which they are shown.
std::vector<Check> all_checks(const node::Config&);
/// Runs `attempt` in a child, ten seconds at most.
Result<void> try_in_child(const std::function<Result<void>()>& attempt);

}  // namespace godwit::cli
