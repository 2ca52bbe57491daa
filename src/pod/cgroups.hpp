#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "image/codec.hpp"
#include "pod/spec.hpp"

/// The directories of a pod in the cgroup hierarchies.
namespace godwit::pod {

struct PodCgroups {
  std::string pod;                  ///< v2: SITE/pods/NAME, and below it
  std::vector<std::string> limits;  ///< in v1 hierarchies, for what v2 has no controller for here
  [[nodiscard]] std::string init() const { return pod + "/init"; }
  [[nodiscard]] std::string work() const { return pod + "/work"; }
  MSGPACK_DEFINE_MAP(pod, limits)
};

/// Makes them, empty, after killing what an earlier pod of that name has left in them. Limits in v1 are set. `refused`
/// when there is a limit and no controller for it.
Result<PodCgroups> make_cgroups(const std::string& site, const std::string& node, const Spec&);
/// Sets the limits that v2 has controllers for; once the init has left the pod's own directory, which may then have no
/// processes.
Result<void> set_limits(const PodCgroups&, const Spec&);
/// Gives them all the processors: who has used up its share dies only when it would run again (kernel 6.18 throttles a
/// killed task too), and what it has spent in the kernel may be the share of minutes.
void lift_limits(const PodCgroups&);
/// Lifts the limits, kills what is in them and removes them. Absent ones are no error.
Result<void> remove_cgroups(const PodCgroups&);

}  // namespace godwit::pod
