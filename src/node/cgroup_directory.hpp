#pragma once

#include <string>

#include "base/result.hpp"

namespace godwit::node {

/// The directory in the cgroup v2 hierarchy below which this node's pods get theirs, made if need be: `configured`, or
/// godwit/NODE at the top of the hierarchy. Not below the cgroup that a service manager has started us in: it would
/// have to be empty of processes while pods are in it, when we are started again.
Result<std::string> prepare_cgroup(const std::string& configured, const std::string& node);

}  // namespace godwit::node
