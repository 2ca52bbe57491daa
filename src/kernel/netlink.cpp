#include "kernel/netlink.hpp"

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/veth.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <netlink/socket.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <thread>

namespace godwit::kernel {

Result<Mac> parse_mac(const std::string& text) {
  Mac mac{};
  int used = 0;
  const int n = std::sscanf(text.c_str(), "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3],
                            &mac[4], &mac[5], &used);
  if (n != 6 || static_cast<std::size_t>(used) != text.size())
    return fail(ErrorKind::invalid, "\"{}\" is no MAC address", text);
  return mac;
}

std::string to_string(const Mac& mac) {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

std::size_t Prefix::size() const {
  return family == AF_INET ? 4 : 16;
}

std::string Prefix::address() const {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(family, bytes.data(), text, sizeof text);
  return text;
}

std::string Prefix::to_string() const {
  return fmt::format("{}/{}", address(), length);
}

Result<Prefix> parse_prefix(const std::string& text) {
  const auto slash = text.find('/');
  const std::string address = text.substr(0, slash);
  Prefix prefix;
  prefix.family = address.find(':') == std::string::npos ? AF_INET : AF_INET6;
  if (inet_pton(prefix.family, address.c_str(), prefix.bytes.data()) != 1)
    return fail(ErrorKind::invalid, "\"{}\" is no IP address", text);
  const int all = static_cast<int>(prefix.size()) * 8;
  prefix.length = all;
  if (slash != std::string::npos) {
    const char* begin = text.data() + slash + 1;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(begin, end, prefix.length);
    if (error != std::errc{} || rest != end || prefix.length < 0 || prefix.length > all)
      return fail(ErrorKind::invalid, "\"{}\" has no valid prefix length", text);
  }
  return prefix;
}

void Netlink::Close::operator()(nl_sock* socket) const {
  nl_socket_free(socket);
}

void Netlink::Drop::operator()(nl_msg* message) const {
  nlmsg_free(message);
}

Result<Netlink> Netlink::open() {
  Netlink netlink;
  netlink.socket_.reset(nl_socket_alloc());
  if (!netlink.socket_) return fail(ErrorKind::failed, "allocate a netlink socket");
  if (const int error = nl_connect(netlink.socket_.get(), NETLINK_ROUTE); error < 0)
    return fail(ErrorKind::failed, "open a netlink socket: {}", nl_geterror(error));
  return netlink;
}

Netlink::Message Netlink::link_message(int type, int flags, int index) {
  Message message(nlmsg_alloc_simple(type, flags));
  ifinfomsg header{};
  header.ifi_index = index;
  nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO);
  return message;
}

Result<void> Netlink::request(Message message, const std::string& what) const {
  // libnl's own codes are coarser than errno: take it from the kernel's answer.
  int code = 0;
  const auto keep_errno = [](sockaddr_nl*, nlmsgerr* answer, void* to) {
    *static_cast<int*>(to) = -answer->error;
    return static_cast<int>(NL_STOP);
  };
  nl_socket_modify_err_cb(socket_.get(), NL_CB_CUSTOM, keep_errno, &code);
  const int error = nl_send_sync(socket_.get(), message.release());
  nl_socket_modify_err_cb(socket_.get(), NL_CB_DEFAULT, nullptr, nullptr);
  if (error >= 0) return {};
  if (code == 0) return fail(ErrorKind::failed, "{}: {}", what, nl_geterror(error));
  errno = code;
  return fail_errno("{}", what);
}

namespace {

/// All that the kernel answers to a request for a list; `found` is what `collect` fills.
template <typename Found, typename Header>
Result<Found> dump(nl_sock* socket, int type, Header header, int (*collect)(nl_msg*, void*), const char* what) {
  Found found;
  nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, collect, &found);
  int error = 0;
  for (int attempt = 0; attempt < 100; ++attempt) {
    found.clear();
    error = nl_send_simple(socket, type, NLM_F_DUMP, &header, sizeof header);
    if (error >= 0) error = nl_recvmsgs_default(socket);
    // Something came or went between two parts of the answer (NLM_F_DUMP_INTR).
    if (error != -NLE_DUMP_INTR) break;
  }
  nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_DEFAULT, nullptr, nullptr);
  if (error < 0) return fail(ErrorKind::failed, "list the {}: {}", what, nl_geterror(error));
  return found;
}

using Devices = std::vector<std::pair<int, std::string>>;

int collect_device(nl_msg* message, void* to) {
  const auto* header = static_cast<const ifinfomsg*>(nlmsg_data(nlmsg_hdr(message)));
  if (const nlattr* name = nlmsg_find_attr(nlmsg_hdr(message), sizeof *header, IFLA_IFNAME); name != nullptr)
    static_cast<Devices*>(to)->emplace_back(header->ifi_index, nla_get_string(name));
  return NL_OK;
}

Result<Devices> all_devices(nl_sock* socket) {
  return dump<Devices>(socket, RTM_GETLINK, ifinfomsg{}, collect_device, "network devices");
}

}  // namespace

Result<int> Netlink::index(const std::string& device) const {
  for (const auto& [index, name] : TRY(all_devices(socket_.get())))
    if (name == device) return index;
  errno = ENODEV;
  auto error = fail_errno("network device {}", device);
  error.error().kind = ErrorKind::not_found;
  return error;
}

Result<std::vector<std::string>> Netlink::devices() const {
  std::vector<std::string> names;
  for (auto& [index, name] : TRY(all_devices(socket_.get()))) names.push_back(std::move(name));
  return names;
}

namespace {

const nlattr* find_nested(const nlattr* nest, int type) {
  return nest == nullptr ? nullptr : nla_find(static_cast<nlattr*>(nla_data(nest)), nla_len(nest), type);
}

int look_at_state(nl_msg* message, void* to) {
  const nlmsghdr* header = nlmsg_hdr(message);
  const nlattr* operation = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(ifinfomsg), IFLA_OPERSTATE);
  bool carries = operation != nullptr && nla_get_u8(operation) == IF_OPER_UP;
  const nlattr* info = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(ifinfomsg), IFLA_LINKINFO);
  const nlattr* kind = find_nested(info, IFLA_INFO_SLAVE_KIND);
  if (kind != nullptr && std::string_view(nla_get_string(kind)) == "bridge") {
    const nlattr* data = find_nested(info, IFLA_INFO_SLAVE_DATA);
    const nlattr* state = find_nested(data, IFLA_BRPORT_STATE);
    carries &= state != nullptr && nla_get_u8(state) == BR_STATE_FORWARDING;
  }
  *static_cast<bool*>(to) = carries;
  return NL_OK;
}

}  // namespace

Result<bool> Netlink::carries(int index) const {
  bool carries = false;
  nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_CUSTOM, look_at_state, &carries);
  auto asked = request(link_message(RTM_GETLINK, 0, index), fmt::format("look at network device {}", index));
  nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_DEFAULT, nullptr, nullptr);
  if (!asked) return std::unexpected(std::move(asked.error()));
  return carries;
}

Result<void> Netlink::wait_until_it_carries(int index, std::chrono::milliseconds limit) const {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!TRY(carries(index))) {
    if (std::chrono::steady_clock::now() > end)
      return fail(ErrorKind::timeout, "network device {} doesn't come up", index);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return {};
}

Result<void> Netlink::create_veth(const VethPair& pair) const {
  Message message = link_message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0);
  nl_msg* m = message.get();
  nla_put_string(m, IFLA_IFNAME, pair.name.c_str());
  if (pair.mtu != 0) nla_put_u32(m, IFLA_MTU, static_cast<std::uint32_t>(pair.mtu));
  nlattr* info = nla_nest_start(m, IFLA_LINKINFO);
  nla_put_string(m, IFLA_INFO_KIND, "veth");
  nlattr* data = nla_nest_start(m, IFLA_INFO_DATA);
  nlattr* peer = nla_nest_start(m, VETH_INFO_PEER);
  const ifinfomsg header{};
  nlmsg_append(m, const_cast<ifinfomsg*>(&header), sizeof header, NLMSG_ALIGNTO);
  nla_put_string(m, IFLA_IFNAME, pair.peer_name.c_str());
  if (pair.peer_mac) nla_put(m, IFLA_ADDRESS, static_cast<int>(pair.peer_mac->size()), pair.peer_mac->data());
  if (pair.mtu != 0) nla_put_u32(m, IFLA_MTU, static_cast<std::uint32_t>(pair.mtu));
  if (pair.peer_netns >= 0) nla_put_u32(m, IFLA_NET_NS_FD, static_cast<std::uint32_t>(pair.peer_netns));
  nla_nest_end(m, peer);
  nla_nest_end(m, data);
  nla_nest_end(m, info);
  return request(std::move(message), fmt::format("create the veth pair {} - {}", pair.name, pair.peer_name));
}

Result<void> Netlink::create_bridge(const std::string& name) const {
  Message message = link_message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0);
  nl_msg* m = message.get();
  nla_put_string(m, IFLA_IFNAME, name.c_str());
  nlattr* info = nla_nest_start(m, IFLA_LINKINFO);
  nla_put_string(m, IFLA_INFO_KIND, "bridge");
  nlattr* data = nla_nest_start(m, IFLA_INFO_DATA);
  nla_put_u32(m, IFLA_BR_FORWARD_DELAY, 0);
  nla_put_u32(m, IFLA_BR_STP_STATE, 0);
  nla_put_u8(m, IFLA_BR_MCAST_SNOOPING, 0);
  nla_nest_end(m, data);
  nla_nest_end(m, info);
  return request(std::move(message), fmt::format("create the bridge {}", name));
}

Result<void> Netlink::remove(int index) const {
  return request(link_message(RTM_DELLINK, 0, index), fmt::format("remove network device {}", index));
}

Result<void> Netlink::set_up(int index, bool up) const {
  Message message(nlmsg_alloc_simple(RTM_NEWLINK, 0));
  ifinfomsg header{};
  header.ifi_index = index;
  header.ifi_change = IFF_UP;
  header.ifi_flags = up ? IFF_UP : 0;
  nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO);
  return request(std::move(message), fmt::format("set network device {} {}", index, up ? "up" : "down"));
}

Result<void> Netlink::set_mac(int index, const Mac& mac) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nla_put(message.get(), IFLA_ADDRESS, static_cast<int>(mac.size()), mac.data());
  return request(std::move(message),
                 fmt::format("give network device {} the address {}", index, kernel::to_string(mac)));
}

Result<void> Netlink::set_mtu(int index, int mtu) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nla_put_u32(message.get(), IFLA_MTU, static_cast<std::uint32_t>(mtu));
  return request(std::move(message), fmt::format("set the MTU of network device {} to {}", index, mtu));
}

Result<void> Netlink::set_queue_length(int index, int frames) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nla_put_u32(message.get(), IFLA_TXQLEN, static_cast<std::uint32_t>(frames));
  return request(std::move(message), fmt::format("set the queue of network device {} to {} frames", index, frames));
}

Result<void> Netlink::set_master(int index, int bridge) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nla_put_u32(message.get(), IFLA_MASTER, static_cast<std::uint32_t>(bridge));
  return request(std::move(message), fmt::format("put network device {} into bridge {}", index, bridge));
}

Result<void> Netlink::set_port_forwarding(int index, bool forwarding) const {
  Message message(nlmsg_alloc_simple(RTM_SETLINK, 0));
  ifinfomsg header{};
  header.ifi_family = AF_BRIDGE;
  header.ifi_index = index;
  nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO);
  nlattr* port = nla_nest_start(message.get(), IFLA_PROTINFO | NLA_F_NESTED);
  nla_put_u8(message.get(), IFLA_BRPORT_STATE, forwarding ? BR_STATE_FORWARDING : BR_STATE_DISABLED);
  nla_nest_end(message.get(), port);
  return request(std::move(message), fmt::format("let the bridge of network device {} {}", index,
                                                 forwarding ? "forward" : "forward nothing"));
}

Result<void> Netlink::move(int index, int netns, const std::string& new_name) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nla_put_u32(message.get(), IFLA_NET_NS_FD, static_cast<std::uint32_t>(netns));
  nla_put_string(message.get(), IFLA_IFNAME, new_name.c_str());
  return request(std::move(message), fmt::format("move network device {} away as {}", index, new_name));
}

Result<void> Netlink::no_automatic_address(int index) const {
  Message message = link_message(RTM_NEWLINK, 0, index);
  nl_msg* m = message.get();
  nlattr* families = nla_nest_start(m, IFLA_AF_SPEC);
  nlattr* inet6 = nla_nest_start(m, AF_INET6);
  nla_put_u8(m, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
  nla_nest_end(m, inet6);
  nla_nest_end(m, families);
  return request(std::move(message), fmt::format("turn off automatic addresses of network device {}", index));
}

Result<void> Netlink::add_address(int index, const Prefix& prefix) const {
  Message message(nlmsg_alloc_simple(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL));
  nl_msg* m = message.get();
  ifaddrmsg header{};
  header.ifa_family = static_cast<std::uint8_t>(prefix.family);
  header.ifa_prefixlen = static_cast<std::uint8_t>(prefix.length);
  header.ifa_index = static_cast<std::uint32_t>(index);
  if (prefix.family == AF_INET6) header.ifa_flags = IFA_F_NODAD;
  const auto size = static_cast<int>(prefix.size());
  nlmsg_append(m, &header, sizeof header, NLMSG_ALIGNTO);
  nla_put(m, IFA_LOCAL, size, prefix.bytes.data());
  nla_put(m, IFA_ADDRESS, size, prefix.bytes.data());
  if (prefix.family == AF_INET && prefix.length < 31) {
    auto broadcast = prefix.bytes;
    for (int bit = prefix.length; bit < 32; ++bit)
      broadcast[static_cast<std::size_t>(bit / 8)] |= static_cast<std::uint8_t>(0x80 >> (bit % 8));
    nla_put(m, IFA_BROADCAST, 4, broadcast.data());
  }
  auto result =
      request(std::move(message), fmt::format("give network device {} the address {}", index, prefix.to_string()));
  if (!result && result.error().code == EEXIST) return {};
  return result;
}

Result<void> Netlink::set_default_route(int index, const Prefix& gateway) const {
  Message message(nlmsg_alloc_simple(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE));
  nl_msg* m = message.get();
  rtmsg header{};
  header.rtm_family = static_cast<std::uint8_t>(gateway.family);
  header.rtm_table = RT_TABLE_MAIN;
  header.rtm_protocol = RTPROT_STATIC;
  header.rtm_scope = RT_SCOPE_UNIVERSE;
  header.rtm_type = RTN_UNICAST;
  nlmsg_append(m, &header, sizeof header, NLMSG_ALIGNTO);
  nla_put(m, RTA_GATEWAY, static_cast<int>(gateway.size()), gateway.bytes.data());
  nla_put_u32(m, RTA_OIF, static_cast<std::uint32_t>(index));
  return request(std::move(message), fmt::format("set the default route by {}", gateway.address()));
}

namespace {

struct KnownNeighbour {
  int device;
  Neighbour neighbour;
};
using KnownNeighbours = std::vector<KnownNeighbour>;

int collect_neighbour(nl_msg* message, void* to) {
  constexpr int known = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT;
  nlmsghdr* header = nlmsg_hdr(message);
  if (nlmsg_datalen(header) < static_cast<int>(sizeof(ndmsg))) return NL_OK;
  const auto* said = static_cast<const ndmsg*>(nlmsg_data(header));
  if ((said->ndm_state & known) == 0 || (said->ndm_flags & NTF_PROXY) != 0) return NL_OK;
  if (said->ndm_family != AF_INET && said->ndm_family != AF_INET6) return NL_OK;
  const nlattr* address = nlmsg_find_attr(header, sizeof *said, NDA_DST);
  const nlattr* mac = nlmsg_find_attr(header, sizeof *said, NDA_LLADDR);
  Neighbour neighbour{.address = {.family = said->ndm_family}, .permanent = (said->ndm_state & NUD_PERMANENT) != 0};
  neighbour.address.length = static_cast<int>(neighbour.address.size()) * 8;
  if (address == nullptr || nla_len(address) != static_cast<int>(neighbour.address.size())) return NL_OK;
  if (mac == nullptr || nla_len(mac) != static_cast<int>(neighbour.mac.size())) return NL_OK;
  std::memcpy(neighbour.address.bytes.data(), nla_data(address), neighbour.address.size());
  std::memcpy(neighbour.mac.data(), nla_data(mac), neighbour.mac.size());
  static_cast<KnownNeighbours*>(to)->push_back({said->ndm_ifindex, neighbour});
  return NL_OK;
}

}  // namespace

Result<std::vector<Neighbour>> Netlink::neighbours(int index) const {
  std::vector<Neighbour> found;
  for (const auto& [device, neighbour] :
       TRY(dump<KnownNeighbours>(socket_.get(), RTM_GETNEIGH, ndmsg{}, collect_neighbour, "neighbours")))
    if (device == index) found.push_back(neighbour);
  return found;
}

Result<void> Netlink::add_neighbour(int index, const Neighbour& neighbour) const {
  Message message(nlmsg_alloc_simple(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE));
  ndmsg header{};
  header.ndm_family = static_cast<std::uint8_t>(neighbour.address.family);
  header.ndm_ifindex = index;
  header.ndm_state = neighbour.permanent ? NUD_PERMANENT : NUD_STALE;
  nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO);
  nla_put(message.get(), NDA_DST, static_cast<int>(neighbour.address.size()), neighbour.address.bytes.data());
  nla_put(message.get(), NDA_LLADDR, static_cast<int>(neighbour.mac.size()), neighbour.mac.data());
  return request(std::move(message),
                 fmt::format("tell network device {} of its neighbour {}", index, neighbour.address.address()));
}

Result<void> Netlink::set_rate(int index, std::uint64_t bits_per_second) const {
  const std::uint64_t bytes_per_second = bits_per_second / 8;
  if (bytes_per_second < 1000) return fail(ErrorKind::invalid, "a rate of {} bit/s is too low", bits_per_second);
  // A bucket must hold the largest super-frame (64 KiB) and what flows between two timer ticks; waiting frames: 20 ms.
  const std::uint64_t burst = std::max<std::uint64_t>(128 * 1024, bytes_per_second / 1000);
  tc_tbf_qopt options{};
  options.rate.rate = static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes_per_second, UINT32_MAX));
  options.rate.linklayer = TC_LINKLAYER_ETHERNET;
  options.limit = static_cast<std::uint32_t>(burst + std::max<std::uint64_t>(bytes_per_second / 50, 512 * 1024));
  // Without a rate table (kernels before 3.9) the time that the burst takes, in ticks of 64 ns, is all that counts.
  options.buffer = static_cast<std::uint32_t>(burst * 15'625'000 / bytes_per_second);

  Message message(nlmsg_alloc_simple(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE));
  nl_msg* m = message.get();
  tcmsg header{};
  header.tcm_ifindex = index;
  header.tcm_parent = TC_H_ROOT;
  header.tcm_handle = 1U << 16;
  nlmsg_append(m, &header, sizeof header, NLMSG_ALIGNTO);
  nla_put_string(m, TCA_KIND, "tbf");
  nlattr* nest = nla_nest_start(m, TCA_OPTIONS);
  nla_put(m, TCA_TBF_PARMS, sizeof options, &options);
  if (bytes_per_second > UINT32_MAX) nla_put_u64(m, TCA_TBF_RATE64, bytes_per_second);
  nla_put_u32(m, TCA_TBF_BURST, static_cast<std::uint32_t>(burst));
  nla_nest_end(m, nest);
  return request(std::move(message), fmt::format("limit network device {} to {} bit/s", index, bits_per_second));
}

Result<void> Netlink::clear_rate(int index) const {
  Message message(nlmsg_alloc_simple(RTM_DELQDISC, 0));
  tcmsg header{};
  header.tcm_ifindex = index;
  header.tcm_parent = TC_H_ROOT;
  nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO);
  auto result = request(std::move(message), fmt::format("lift the limit of network device {}", index));
  if (!result && (result.error().code == ENOENT || result.error().code == EINVAL)) return {};
  return result;
}

}  // namespace godwit::kernel
