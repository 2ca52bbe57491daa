#pragma once

#include <mutex>

#include "pod/directory.hpp"
#include "pod/init_protocol.hpp"
#include "pod/network.hpp"
#include "pod/pod.hpp"

namespace godwit::pod {

struct Answer {
  Response response;
  std::vector<Fd> descriptors;
};

/// What a Pod holds.
struct Pod::Parts {
  Parts(Site site_, const Spec& spec_)
      : site(std::move(site_)), spec(spec_), directory(site.state_dir, site.run_dir, spec.name) {}

  Site site;
  Spec spec;
  Directory directory;
  PodCgroups cgroups;
  HostPid init;
  Fd pidfd;
  Fd control;
  Fd events;
  Namespaces namespaces;
  Cgroup workload;
  std::optional<Port> port;
  std::mutex asking;  ///< held from a request to its answer: a migration still forgets deposits when others use the pod
  std::uint32_t sequence = 0;
  bool kept = false;
  bool destroyed = false;

  /// One request to the init and its answer.
  Result<Answer> ask(Command, Request = {}, const std::vector<int>& descriptors = {});
  /// The next answer with this sequence number; late ones to requests that we gave up on are dropped.
  Result<Answer> answer_to(std::uint32_t number) const;
  /// A program, as the pod's user.
  Result<Started> launch(Command, Request);
  Result<void> use_control(Fd);  ///< a connection to the init, with a limit on how long it may take to answer
  Result<void> subscribe();
  Result<void> end_init(std::vector<HostPid> traced);
};

/// Pid of the process behind a pidfd in our pid namespace; 0 when it has ended.
Result<HostPid> process_of(int pidfd);

}  // namespace godwit::pod
