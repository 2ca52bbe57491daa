#pragma once

#include <memory>
#include <string>

#include "base/result.hpp"
#include "pod/gate.hpp"
#include "pod/spec.hpp"

/// A pod on the network: its port, and who it is there.
namespace godwit::pod {

/// A pod's network port: a veth whose node's end `gw-XXXXXXXX` stands in the node's bridge behind a gate, and whose
/// other end is `eth0` in the pod's network namespace, with the pod's MAC, addresses (no duplicate address detection:
/// they come along) and default routes. All calls run in the node's network namespace. Not thread-safe.
class Port {
 public:
  /// Makes the port of the pod `id` and brings it and `lo` up. The gate is in `state` before the device is up, so that
  /// a pod that arrives (`shut`) makes no frame and the bridge learns nothing. With an empty `bridge` the pod has only
  /// loopback: the port exists, without addresses and down. A port of that name left by a crash is replaced.
  /// With `shut` the bridge lets nothing through, either, until `connect`: a gate goes with whoever holds it.
  static Result<Port> create(const std::string& bridge, const std::string& id, const Network&, int pod_netns,
                             Gate::State state);
  /// The port that an earlier daemon made. `gate` as that daemon left it with the pod's init; without descriptors the
  /// gate is installed anew, open.
  static Result<Port> adopt(const std::string& id, const Network&, int pod_netns, std::map<std::string, Fd> gate = {});

  [[nodiscard]] const std::string& device() const;  ///< the node's end
  [[nodiscard]] Gate& gate();

  /// The bridge lets frames through, as the gate does. Not before somebody holds the gate who outlives this process.
  Result<void> connect();

  /// Tells the neighbours where the pod's addresses are: gratuitous ARP (request and reply) and unsolicited neighbour
  /// advertisements, by a socket inside the pod's namespace that was opened at creation. The gate must let frames out
  /// (open, pause).
  Result<void> announce();

  /// Whom the pod's ARP and neighbour discovery caches know. They travel with it: what a pod sends to somebody whom it
  /// has to ask for first waits in a queue that is short, and what it loses there, TCP misses only after a second (a
  /// connection that was just rebuilt has measured no round trip).
  Result<std::vector<Neighbour>> neighbours() const;
  /// `invalid` for what is no address, or for more than a cache holds.
  Result<void> add_neighbours(const std::vector<Neighbour>&) const;

  /// Removes the pair. No error when it is gone already (with the pod's namespace, say).
  Result<void> remove();

  /// Name of the node's end for a pod.
  [[nodiscard]] static std::string device_for(const std::string& id);

  Port(Port&&) noexcept;
  Port& operator=(Port&&) noexcept;
  ~Port();  ///< lets go of the handles; the device stays

 private:
  struct Parts;
  explicit Port(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

/// Where pods' addresses come from: the node's config, the same on all nodes.
struct AddressPlan {
  std::string subnet4;  ///< "10.66.0.0/16": the network's prefix
  std::string pool4;    ///< part of it that pods get addresses from: "10.66.128.0/17"; empty: the upper half of subnet4
  std::string subnet6;  ///< "fd66::/64"; empty: no IPv6
  std::string gateway4;  ///< may be empty
  std::string gateway6;
};

/// The `attempt`-th candidate for the network identity of the pod `id`: the same for the same arguments. The IPv4
/// address decides the rest (MAC and IPv6 are made from it), so whoever reserves it in the store has reserved all.
/// `invalid` for a plan that can't be read.
Result<Network> candidate_network(const AddressPlan&, const std::string& id, std::uint32_t attempt);

}  // namespace godwit::pod
