#include "pod/namespaces.hpp"

#include <fcntl.h>

#include "kernel/procfs.hpp"

namespace godwit::pod {

Result<Namespaces> Namespaces::of(HostPid init) {
  const auto open = [&](std::string_view name) { return kernel::open_file(init, name, O_RDONLY | O_CLOEXEC); };
  Namespaces namespaces;
  namespaces.pid = TRY(open("ns/pid"));
  namespaces.mount = TRY(open("ns/mnt"));
  namespaces.net = TRY(open("ns/net"));
  namespaces.ipc = TRY(open("ns/ipc"));
  namespaces.uts = TRY(open("ns/uts"));
  namespaces.time = TRY(open("ns/time"));
  namespaces.cgroup = TRY(open("ns/cgroup"));
  return namespaces;
}

}  // namespace godwit::pod
