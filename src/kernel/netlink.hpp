#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"

struct nl_msg;
struct nl_sock;

namespace godwit::kernel {

using Mac = std::array<std::uint8_t, 6>;
Result<Mac> parse_mac(const std::string&);
std::string to_string(const Mac&);

/// An IPv4 or IPv6 address with the length of its prefix.
struct Prefix {
  int family = 0;  ///< AF_INET, AF_INET6
  std::array<std::uint8_t, 16> bytes{};
  int length = 0;
  [[nodiscard]] std::size_t size() const;       ///< of the address: 4 or 16
  [[nodiscard]] std::string address() const;    ///< without the length
  [[nodiscard]] std::string to_string() const;  ///< "10.66.0.21/16"
};
/// "10.66.0.21/16", "fd66::21/64"; without a length it is all of the address. `invalid` otherwise.
Result<Prefix> parse_prefix(const std::string&);

/// Whose frames go where on the link: an entry of the ARP or neighbour discovery cache.
struct Neighbour {
  Prefix address;  ///< its length isn't used
  Mac mac{};
  bool permanent = false;  ///< set by hand, and never asked about again
};

/// A veth pair to be made, both ends down.
struct VethPair {
  std::string name;
  std::string peer_name;
  int peer_netns = -1;  ///< descriptor of the namespace for the peer; -1: here
  std::optional<Mac> peer_mac;
  int mtu = 0;  ///< of both ends; 0: the kernel's default
};

/// Routing netlink of the network namespace that the calling thread was in at open(), whatever it enters later. Errors
/// carry the kernel's errno: EEXIST, ENODEV, …
class Netlink {
 public:
  static Result<Netlink> open();

  Result<int> index(const std::string& device) const;
  Result<std::vector<std::string>> devices() const;

  /// Whether the device carries frames: its state is up (the kernel gets there some time after set_up) and, if it is
  /// in a bridge, its port forwards.
  Result<bool> carries(int index) const;
  /// Waits until it does; `timeout` after `limit`.
  Result<void> wait_until_it_carries(int index, std::chrono::milliseconds limit) const;

  Result<void> create_veth(const VethPair&) const;
  /// No spanning tree, no forwarding delay, no multicast snooping.
  Result<void> create_bridge(const std::string& name) const;
  Result<void> remove(int index) const;

  Result<void> set_up(int index, bool up) const;
  Result<void> set_mac(int index, const Mac&) const;
  Result<void> set_mtu(int index, int mtu) const;
  Result<void> set_queue_length(int index, int frames) const;
  /// Master bridge; 0 takes it out.
  Result<void> set_master(int index, int bridge) const;
  /// Whether the device's bridge lets anything through to and from it. Only of a device that is up, in a bridge whose
  /// STP isn't the kernel's. Stays whoever lives (IFLA_BRPORT_STATE: disabled or forwarding).
  Result<void> set_port_forwarding(int index, bool forwarding) const;
  /// Moves the device (it goes down) and gives it another name on the way.
  Result<void> move(int index, int netns, const std::string& new_name) const;
  /// No link-local IPv6 address made by the kernel, so no frame is sent by itself when the device comes up.
  Result<void> no_automatic_address(int index) const;

  /// IPv6 without duplicate address detection. EEXIST is no error.
  Result<void> add_address(int index, const Prefix&) const;
  /// Default route through a gateway. Replaces one that is there.
  Result<void> set_default_route(int index, const Prefix& gateway) const;

  /// What the device's neighbours are known to be, IPv4 and IPv6; not those that are only being asked for.
  Result<std::vector<Neighbour>> neighbours(int index) const;
  /// Believed until it is used, and then asked about while frames go there already (NUD_STALE). Replaces what was
  /// known.
  Result<void> add_neighbour(int index, const Neighbour&) const;

  /// Token bucket at the device's root, bits per second; a new rate replaces the old one.
  Result<void> set_rate(int index, std::uint64_t bits_per_second) const;
  Result<void> clear_rate(int index) const;

 private:
  struct Close {
    void operator()(nl_sock*) const;
  };
  struct Drop {
    void operator()(nl_msg*) const;
  };
  using Message = std::unique_ptr<nl_msg, Drop>;
  static Message link_message(int type, int flags, int index);
  Result<void> request(Message, const std::string& what) const;

  std::unique_ptr<nl_sock, Close> socket_;
};

}  // namespace godwit::kernel
