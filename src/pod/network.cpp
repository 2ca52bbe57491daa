#include "pod/network.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>
#include <openssl/sha.h>
#include <sched.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "kernel/netlink.hpp"

namespace godwit::pod {

using kernel::Mac;
using kernel::Netlink;
using kernel::Prefix;

namespace {

constexpr std::size_t address_limit = 64;
/// net.ipv4.neigh.default.gc_thresh3 as the kernel sets it.
constexpr std::size_t neighbour_limit = 1024;
constexpr std::chrono::milliseconds start_limit{3000};

/// Runs `work` on a thread that has entered the network namespace; sockets made there stay in it.
Result<void> inside(int netns, const std::function<Result<void>()>& work) {
  Result<void> result;
  std::thread([&] {
    if (setns(netns, CLONE_NEWNET) != 0)
      result = fail_errno("enter a pod's network namespace");
    else
      result = work();
  }).join();
  return result;
}

/// A sysctl of the calling thread's network namespace. Absent files (no IPv6) are no error.
Result<void> set_sysctl(const std::string& path, const char* value) {
  Fd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file && errno == ENOENT) return {};
  if (!file || write(file.get(), value, std::strlen(value)) < 0) return fail_errno("set {}", path);
  return {};
}

struct Identity {
  Mac mac{};
  std::vector<Prefix> addresses;
  std::vector<Prefix> gateways;
};

/// The link-local address that the MAC stands for (RFC 4291, appendix A). Made by us because the kernel's own way
/// begins with frames that ask whether it is taken.
Prefix link_local(const Mac& mac) {
  Prefix prefix{.family = AF_INET6, .length = 64};
  prefix.bytes = {0xfe,   0x80,   0,    0,    0,      0,      0,     0, static_cast<std::uint8_t>(mac[0] ^ 2),
                  mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]};
  return prefix;
}

Result<Identity> identity_of(const Network& network) {
  if (network.addresses.size() > address_limit)
    return fail(ErrorKind::invalid, "a pod with {} addresses (at most {})", network.addresses.size(), address_limit);
  Identity identity;
  identity.mac = TRY(kernel::parse_mac(network.mac));
  bool ipv6 = false;
  for (const auto& address : network.addresses) {
    identity.addresses.push_back(TRY(kernel::parse_prefix(address)));
    ipv6 |= identity.addresses.back().family == AF_INET6;
  }
  if (ipv6) identity.addresses.push_back(link_local(identity.mac));
  for (const auto& gateway : {network.gateway4, network.gateway6})
    if (!gateway.empty()) identity.gateways.push_back(TRY(kernel::parse_prefix(gateway)));
  return identity;
}

/// The pod's end: everything that a socket needs in order to be rebuilt. On a thread in the pod's namespace.
Result<void> set_up_inside(const Identity& identity, bool with_network) {
  const auto netlink = TRY(Netlink::open());
  TRY(netlink.set_up(TRY(netlink.index("lo")), true));
  if (!with_network) return {};
  // Who the pod is comes from its spec alone: a router's word would not move with it.
  for (const char* name : {"accept_ra", "accept_dad"}) {
    TRY(set_sysctl(fmt::format("/proc/sys/net/ipv6/conf/all/{}", name), "0"));
    TRY(set_sysctl(fmt::format("/proc/sys/net/ipv6/conf/eth0/{}", name), "0"));
  }
  const int device = TRY(netlink.index("eth0"));
  TRY(netlink.no_automatic_address(device));
  for (const auto& address : identity.addresses) TRY(netlink.add_address(device, address));
  TRY(netlink.set_up(device, true));
  for (const auto& gateway : identity.gateways) TRY(netlink.set_default_route(device, gateway));
  return {};
}

/// Handles of the pod's network namespace.
struct Inside {
  Netlink netlink;
  int device = 0;
  Fd announcer;
};

Result<Inside> open_inside() {
  Fd announcer(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!announcer) return fail_errno("open a packet socket in a pod");
  auto netlink = TRY(Netlink::open());
  const int device = TRY(netlink.index("eth0"));
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = device;
  if (bind(announcer.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0)
    return fail_errno("bind a packet socket to a pod's eth0");
  return Inside{std::move(netlink), device, std::move(announcer)};
}

template <typename T>
void append(Bytes& frame, const T& part) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&part);
  frame.insert(frame.end(), bytes, bytes + sizeof part);
}

Bytes ethernet(const Mac& to, const Mac& from, std::uint16_t type) {
  Bytes frame;
  append(frame, to);
  append(frame, from);
  append(frame, htons(type));
  return frame;
}

/// Sender and target are both the announced address (RFC 5227); switches and caches follow either form.
Bytes gratuitous_arp(const Mac& mac, const Prefix& address, std::uint16_t operation) {
  const Mac everybody{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  Bytes frame = ethernet(everybody, mac, ETHERTYPE_ARP);
  ether_arp arp{};
  arp.arp_hrd = htons(ARPHRD_ETHER);
  arp.arp_pro = htons(ETHERTYPE_IP);
  arp.arp_hln = static_cast<std::uint8_t>(mac.size());
  arp.arp_pln = 4;
  arp.arp_op = htons(operation);
  std::memcpy(arp.arp_sha, mac.data(), mac.size());
  std::memcpy(arp.arp_spa, address.bytes.data(), 4);
  if (operation == ARPOP_REPLY) std::memcpy(arp.arp_tha, everybody.data(), everybody.size());
  std::memcpy(arp.arp_tpa, address.bytes.data(), 4);
  append(frame, arp);
  return frame;
}

std::uint16_t internet_checksum(const Bytes& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) sum += static_cast<std::uint32_t>(bytes[i] << 8 | bytes[i + 1]);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<std::uint16_t>(~sum));
}

/// To all nodes, with the override flag (RFC 4861, 7.2.6).
Bytes neighbour_advertisement(const Mac& mac, const Prefix& address) {
  struct [[gnu::packed]] Advertisement {
    nd_neighbor_advert head;
    std::uint8_t option_type, option_length;
    Mac mac;
  } advertisement{};
  advertisement.head.nd_na_type = ND_NEIGHBOR_ADVERT;
  advertisement.head.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
  std::memcpy(&advertisement.head.nd_na_target, address.bytes.data(), 16);
  advertisement.option_type = ND_OPT_TARGET_LINKADDR;
  advertisement.option_length = 1;
  advertisement.mac = mac;

  ip6_hdr ip{};
  ip.ip6_flow = htonl(6U << 28);
  ip.ip6_plen = htons(sizeof advertisement);
  ip.ip6_nxt = IPPROTO_ICMPV6;
  ip.ip6_hlim = 255;
  std::memcpy(&ip.ip6_src, address.bytes.data(), 16);
  ip.ip6_dst.s6_addr[0] = 0xff;
  ip.ip6_dst.s6_addr[1] = 0x02;
  ip.ip6_dst.s6_addr[15] = 1;

  Bytes summed;
  append(summed, ip.ip6_src);
  append(summed, ip.ip6_dst);
  append(summed, htonl(sizeof advertisement));
  append(summed, htonl(IPPROTO_ICMPV6));
  append(summed, advertisement);
  advertisement.head.nd_na_cksum = internet_checksum(summed);

  Bytes frame = ethernet({0x33, 0x33, 0, 0, 0, 1}, mac, ETHERTYPE_IPV6);
  append(frame, ip);
  append(frame, advertisement);
  return frame;
}

/// A device left by a crash, if there is one.
Result<void> remove_device(const Netlink& netlink, const std::string& name) {
  const auto index = netlink.index(name);
  if (!index) return index.error().kind == ErrorKind::not_found ? Result<void>{} : std::unexpected(index.error());
  auto removed = netlink.remove(*index);
  if (!removed && removed.error().code == ENODEV) return {};
  return removed;
}

}  // namespace

struct Port::Parts {
  std::string device;
  bool connected = false;  ///< to a bridge
  std::optional<Gate> gate;
  std::optional<Inside> inside;
  std::vector<Bytes> announcements;
};

Port::Port(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Port::Port(Port&&) noexcept = default;
Port& Port::operator=(Port&&) noexcept = default;
Port::~Port() = default;

const std::string& Port::device() const {
  return parts_->device;
}

Gate& Port::gate() {
  return *parts_->gate;
}

std::string Port::device_for(const std::string& id) {
  std::array<std::uint8_t, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const std::uint8_t*>(id.data()), id.size(), digest.data());
  return fmt::format("gw-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]);
}

namespace {

std::vector<Bytes> announcements_of(const Identity& identity) {
  std::vector<Bytes> frames;
  for (const auto& address : identity.addresses) {
    if (address.family == AF_INET) {
      frames.push_back(gratuitous_arp(identity.mac, address, ARPOP_REQUEST));
      frames.push_back(gratuitous_arp(identity.mac, address, ARPOP_REPLY));
    } else {
      frames.push_back(neighbour_advertisement(identity.mac, address));
    }
  }
  return frames;
}

}  // namespace

Result<Port> Port::create(const std::string& bridge, const std::string& id, const Network& network, int pod_netns,
                          Gate::State state) {
  auto parts = std::make_unique<Parts>();
  parts->device = device_for(id);
  const bool connected = parts->connected = !bridge.empty();
  Identity identity;
  if (connected) identity = TRY(identity_of(network));
  const auto netlink = TRY(Netlink::open());
  const int bridge_index = connected ? TRY(netlink.index(bridge)) : 0;
  TRY(remove_device(netlink, parts->device));

  kernel::VethPair pair{.name = parts->device, .peer_name = "eth0", .peer_netns = pod_netns};
  if (connected) pair.peer_mac = identity.mac;
  TRY(netlink.create_veth(pair));
  const auto finish = [&]() -> Result<void> {
    const int device = TRY(netlink.index(parts->device));
    parts->gate = TRY(Gate::install(parts->device, state));
    TRY(netlink.no_automatic_address(device));
    TRY(inside(pod_netns, [&]() -> Result<void> {
      TRY(set_up_inside(identity, connected));
      parts->inside = TRY(open_inside());
      return {};
    }));
    if (!connected) return {};
    parts->announcements = announcements_of(identity);
    TRY(netlink.set_up(device, true));
    // Until the kernel's link watch has run, both ends drop what they are given.
    TRY(netlink.wait_until_it_carries(device, start_limit));
    TRY(netlink.set_master(device, bridge_index));
    // A gate is as good as whoever holds it. Were we to die, the pod's addresses would be there without the pod's
    // sockets, and answer its peers with resets.
    if (state == Gate::State::shut) TRY(netlink.set_port_forwarding(device, false));
    return inside(pod_netns, []() -> Result<void> {
      const auto netlink = TRY(Netlink::open());
      return netlink.wait_until_it_carries(TRY(netlink.index("eth0")), start_limit);
    });
  };
  if (auto finished = finish(); !finished) {
    (void)remove_device(netlink, parts->device);
    return std::unexpected(std::move(finished.error()).within("network port"));
  }
  return Port(std::move(parts));
}

Result<Port> Port::adopt(const std::string& id, const Network& network, int pod_netns, std::map<std::string, Fd> gate) {
  auto parts = std::make_unique<Parts>();
  parts->device = device_for(id);
  if (gate.empty())
    parts->gate = TRY(Gate::install(parts->device, Gate::State::open));
  else
    parts->gate = TRY(Gate::from(parts->device, std::move(gate)));
  TRY(inside(pod_netns, [&]() -> Result<void> {
    parts->inside = TRY(open_inside());
    return {};
  }));
  parts->connected = !network.mac.empty();
  if (parts->connected) parts->announcements = announcements_of(TRY(identity_of(network)));
  return Port(std::move(parts));
}

Result<std::vector<Neighbour>> Port::neighbours() const {
  const auto& [netlink, device, announcer] = *parts_->inside;
  std::vector<Neighbour> said;
  for (const auto& known : TRY(netlink.neighbours(device)))
    said.push_back({known.address.address(), kernel::to_string(known.mac), known.permanent});
  if (said.size() > neighbour_limit) said.resize(neighbour_limit);
  return said;
}

Result<void> Port::add_neighbours(const std::vector<Neighbour>& neighbours) const {
  if (neighbours.size() > neighbour_limit)
    return fail(ErrorKind::invalid, "a pod with {} neighbours (at most {})", neighbours.size(), neighbour_limit);
  const auto& [netlink, device, announcer] = *parts_->inside;
  for (const auto& [address, mac, permanent] : neighbours)
    TRY(netlink.add_neighbour(device, {TRY(kernel::parse_prefix(address)), TRY(kernel::parse_mac(mac)), permanent}));
  return {};
}

Result<void> Port::connect() {
  if (!parts_->connected) return {};
  const auto netlink = TRY(Netlink::open());
  return netlink.set_port_forwarding(TRY(netlink.index(parts_->device)), true);
}

Result<void> Port::announce() {
  for (const auto& frame : parts_->announcements)
    if (send(parts_->inside->announcer.get(), frame.data(), frame.size(), 0) < 0 && errno != ENOBUFS)
      return fail_errno("announce the addresses behind {}", parts_->device);
  return {};
}

Result<void> Port::remove() {
  return remove_device(TRY(Netlink::open()), parts_->device);
}

namespace {

std::uint32_t number(const Prefix& prefix) {
  std::uint32_t value = 0;
  std::memcpy(&value, prefix.bytes.data(), 4);
  return ntohl(value);
}

std::uint32_t host_mask(int length) {
  return static_cast<std::uint32_t>((1ULL << (32 - length)) - 1);
}

/// The address at `place` in the plan's IPv4 pool, or the first after it that may be given out.
Result<Prefix> address_in_pool(const AddressPlan& plan, std::uint32_t place) {
  const Prefix subnet = TRY(kernel::parse_prefix(plan.subnet4));
  if (subnet.family != AF_INET || subnet.length < 1 || subnet.length > 29)
    return fail(ErrorKind::invalid, "pods can't get addresses from {}", plan.subnet4);
  const std::uint32_t hosts = host_mask(subnet.length);
  const std::uint32_t base = number(subnet) & ~hosts;
  std::uint32_t pool = base | ((hosts + 1) / 2);
  std::uint32_t pool_hosts = hosts / 2;
  if (!plan.pool4.empty()) {
    const Prefix given = TRY(kernel::parse_prefix(plan.pool4));
    if (given.family != AF_INET || given.length < subnet.length || given.length > 30 ||
        (number(given) & ~hosts) != base)
      return fail(ErrorKind::invalid, "the pool {} is no part of {}", plan.pool4, plan.subnet4);
    pool_hosts = host_mask(given.length);
    pool = number(given) & ~pool_hosts;
  }
  std::uint32_t gateway = 0;
  if (!plan.gateway4.empty()) gateway = number(TRY(kernel::parse_prefix(plan.gateway4)));
  // At most three addresses are nobody's, and every pool has four.
  std::uint32_t address = pool | (place & pool_hosts);
  while (address == base || address == (base | hosts) || address == gateway) address = pool | (++place & pool_hosts);
  Prefix prefix{.family = AF_INET, .length = subnet.length};
  address = htonl(address);
  std::memcpy(prefix.bytes.data(), &address, 4);
  return prefix;
}

}  // namespace

Result<Network> candidate_network(const AddressPlan& plan, const std::string& id, std::uint32_t attempt) {
  // A place by the id, then on from there: every address of the pool is tried once.
  std::array<std::uint8_t, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const std::uint8_t*>(id.data()), id.size(), digest.data());
  std::uint32_t place = 0;
  std::memcpy(&place, digest.data(), sizeof place);
  place += attempt;

  Network network;
  std::array<std::uint8_t, 4> last_bytes{};
  std::memcpy(last_bytes.data(), &place, 4);
  if (!plan.subnet4.empty()) {
    const Prefix ipv4 = TRY(address_in_pool(plan, place));
    std::memcpy(last_bytes.data(), ipv4.bytes.data(), 4);
    network.addresses.push_back(ipv4.to_string());
    network.gateway4 = plan.gateway4;
  }
  if (!plan.subnet6.empty()) {
    Prefix ipv6 = TRY(kernel::parse_prefix(plan.subnet6));
    if (ipv6.family != AF_INET6 || ipv6.length > 64)
      return fail(ErrorKind::invalid, "pods can't get addresses from {}", plan.subnet6);
    std::memset(ipv6.bytes.data() + 8, 0, 8);
    std::memcpy(ipv6.bytes.data() + 12, last_bytes.data(), 4);
    network.addresses.push_back(ipv6.to_string());
    network.gateway6 = plan.gateway6;
  }
  network.mac = kernel::to_string(Mac{0x02, 'g', last_bytes[0], last_bytes[1], last_bytes[2], last_bytes[3]});
  return network;
}

}  // namespace godwit::pod
