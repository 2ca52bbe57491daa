#include "objects/multicast.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>
#include <sstream>

#include "kernel/sock_diag.hpp"

namespace godwit::objects {
namespace {

constexpr std::size_t source_limit = 1024;

struct Group {
  int family = 0;
  std::uint32_t interface = 0;
  std::string address;
};

/// All groups of the pod's interfaces, whoever has joined them; read once.
struct Groups {
  bool read = false;
  std::vector<Group> all;
};

std::string text_of(int family, const void* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(family, address, text.data(), text.size());
  return text.data();
}

/// "2\teth0 : 2 V3" begins an interface, "\t\t010000E0 1 0:00000000 0" is one of its groups, in host order.
void parse_ipv4(const std::string& text, std::vector<Group>& groups) {
  std::istringstream lines(text);
  std::uint32_t interface = 0;
  for (std::string line; std::getline(lines, line);) {
    unsigned number = 0;
    if (line.empty()) continue;
    if (line[0] != '\t') {
      if (std::sscanf(line.c_str(), "%u", &number) == 1) interface = number;
    } else if (std::sscanf(line.c_str(), " %8x", &number) == 1) {
      groups.push_back({AF_INET, interface, text_of(AF_INET, &number)});
    }
  }
}

/// "2 eth0 ff020000000000000000000000000001 1 0000000C 0"
void parse_ipv6(const std::string& text, std::vector<Group>& groups) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    Group group{.family = AF_INET6};
    std::string device, digits;
    in6_addr address{};
    if (!(words >> group.interface >> device >> digits) || digits.size() != 32) continue;
    for (std::size_t i = 0; i < 16; ++i)
      address.s6_addr[i] = static_cast<std::uint8_t>(std::strtoul(digits.substr(i * 2, 2).c_str(), nullptr, 16));
    group.address = text_of(AF_INET6, &address);
    groups.push_back(std::move(group));
  }
}

int level_of(int family) {
  return family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
}

Result<std::vector<std::uint8_t>> filter_of(const Membership& membership, std::size_t sources) {
  std::vector<std::uint8_t> bytes(GROUP_FILTER_SIZE(sources));
  auto* filter = reinterpret_cast<group_filter*>(bytes.data());
  const auto address = TRY(socket_address(membership.family, {membership.group, 0, 0}));
  filter->gf_interface = membership.interface;
  std::memcpy(&filter->gf_group, &address.storage, sizeof(filter->gf_group));
  filter->gf_numsrc = static_cast<std::uint32_t>(sources);
  return bytes;
}

}  // namespace

Result<std::vector<Membership>> read_memberships(const Descriptor& descriptor, int family, Source& source) {
  auto& groups = source.shared<Groups>("multicast groups");
  if (!groups.read) {
    parse_ipv4(TRY(kernel::read_network_file(descriptor.fd, "igmp")), groups.all);
    if (const auto text = kernel::read_network_file(descriptor.fd, "igmp6")) parse_ipv6(*text, groups.all);
    groups.read = true;
  }
  std::vector<Membership> joined;
  for (const auto& group : groups.all) {
    if (family == AF_INET && group.family == AF_INET6) continue;
    Membership membership{.family = group.family, .group = group.address, .interface = group.interface};
    auto bytes = TRY(filter_of(membership, source_limit));
    auto length = static_cast<socklen_t>(bytes.size());
    if (::getsockopt(descriptor.fd, level_of(group.family), MCAST_MSFILTER, bytes.data(), &length) != 0) continue;
    const auto* filter = reinterpret_cast<const group_filter*>(bytes.data());
    if (filter->gf_numsrc > source_limit)
      return fail(ErrorKind::refused, "{}: a multicast filter of {} sources is over the limit", describe(descriptor),
                  filter->gf_numsrc);
    membership.exclude = filter->gf_fmode == MCAST_EXCLUDE;
    for (std::uint32_t i = 0; i < filter->gf_numsrc; ++i) {
      SocketAddress address;
      std::memcpy(&address.storage, &filter->gf_slist[i], sizeof(address.storage));
      membership.sources.push_back(inet_address(address).ip);
    }
    joined.push_back(std::move(membership));
  }
  return joined;
}

Result<void> join_groups(int fd, const std::vector<Membership>& memberships) {
  for (const auto& membership : memberships) {
    if (membership.sources.size() > source_limit) return fail(ErrorKind::invalid, "a multicast filter is too long");
    const auto address = TRY(socket_address(membership.family, {membership.group, 0, 0}));
    group_req request{};
    request.gr_interface = membership.interface;
    std::memcpy(&request.gr_group, &address.storage, sizeof(request.gr_group));
    if (::setsockopt(fd, level_of(membership.family), MCAST_JOIN_GROUP, &request, sizeof(request)) != 0)
      return fail_errno("join the multicast group {}", membership.group);
    if (membership.exclude && membership.sources.empty()) continue;
    auto bytes = TRY(filter_of(membership, membership.sources.size()));
    auto* filter = reinterpret_cast<group_filter*>(bytes.data());
    filter->gf_fmode = membership.exclude ? MCAST_EXCLUDE : MCAST_INCLUDE;
    for (std::size_t i = 0; i < membership.sources.size(); ++i) {
      const auto from = TRY(socket_address(membership.family, {membership.sources[i], 0, 0}));
      std::memcpy(&filter->gf_slist[i], &from.storage, sizeof(filter->gf_slist[i]));
    }
    if (::setsockopt(fd, level_of(membership.family), MCAST_MSFILTER, bytes.data(),
                     static_cast<socklen_t>(bytes.size())) != 0)
      return fail_errno("filter the sources of the multicast group {}", membership.group);
  }
  return {};
}

}  // namespace godwit::objects
