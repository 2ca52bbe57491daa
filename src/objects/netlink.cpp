#include <linux/netlink.h>
#include <poll.h>

#include <cstring>

#include "objects/kinds.hpp"
#include "objects/socket_options.hpp"
#include "objects/typed.hpp"

/// Netlink sockets with nothing to be read: their port, groups and options.
namespace godwit::objects {
namespace {

/// Options that are on or off, by name; the number is that of linux/netlink.h.
constexpr std::array<std::pair<const char*, int>, 7> switches = {{{"NETLINK_PKTINFO", NETLINK_PKTINFO},
                                                                  {"NETLINK_BROADCAST_ERROR", NETLINK_BROADCAST_ERROR},
                                                                  {"NETLINK_NO_ENOBUFS", NETLINK_NO_ENOBUFS},
                                                                  {"NETLINK_LISTEN_ALL_NSID", NETLINK_LISTEN_ALL_NSID},
                                                                  {"NETLINK_CAP_ACK", NETLINK_CAP_ACK},
                                                                  {"NETLINK_EXT_ACK", NETLINK_EXT_ACK},
                                                                  {"NETLINK_GET_STRICT_CHK", NETLINK_GET_STRICT_CHK}}};
constexpr std::size_t group_words_limit = 64;

struct State {
  int type = 0;
  int protocol = 0;
  std::uint32_t port = 0;  ///< 0: not bound
  std::uint32_t peer_port = 0, peer_groups = 0;
  std::vector<std::uint32_t> groups;  ///< bit masks, group 1 first
  std::vector<std::string> on;        ///< of the NETLINK_… options
  SocketOptions options;
  MSGPACK_DEFINE_MAP(type, protocol, port, peer_port, peer_groups, groups, on, options)
};

bool matches(const Descriptor& descriptor) {
  return socket_class(descriptor).domain == AF_NETLINK;
}

/// Families of generic netlink have other numbers on each node, and netfilter's sockets are part of its rules.
Result<void> preflight(const Descriptor& descriptor, Source&) {
  const int protocol = socket_class(descriptor).protocol;
  if (protocol != NETLINK_ROUTE && protocol != NETLINK_SOCK_DIAG && protocol != NETLINK_KOBJECT_UEVENT)
    return fail(ErrorKind::refused, "{}: a netlink socket of protocol {} can't move", describe(descriptor), protocol);
  return check_socket_options(descriptor);
}

sockaddr_nl netlink_address(const SocketAddress& address) {
  sockaddr_nl result{};
  std::memcpy(&result, &address.storage, sizeof(result));
  return result;
}

Result<State> capture(const Descriptor& descriptor, Source&) {
  const int fd = descriptor.fd;
  const auto is = socket_class(descriptor);
  State state{.type = is.type, .protocol = is.protocol};
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  if (::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLIN | POLLERR)))
    return fail(ErrorKind::busy, "{}: netlink messages are unread", describe(descriptor));
  state.port = netlink_address(TRY(local_address(fd))).nl_pid;
  if (const auto peer = peer_address(fd)) {
    state.peer_port = netlink_address(*peer).nl_pid;
    state.peer_groups = netlink_address(*peer).nl_groups;
  }
  state.groups.resize(group_words_limit);
  auto length = static_cast<socklen_t>(state.groups.size() * sizeof(std::uint32_t));
  if (::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, state.groups.data(), &length) != 0)
    return fail_errno("{}: list netlink groups", describe(descriptor));
  if (length > state.groups.size() * sizeof(std::uint32_t))
    return fail(ErrorKind::refused, "{}: too many netlink groups", describe(descriptor));
  state.groups.resize(length / sizeof(std::uint32_t));
  for (const auto& [name, number] : switches)
    if (int_option(fd, SOL_NETLINK, number) != 0) state.on.emplace_back(name);
  state.options = TRY(read_socket_options(descriptor, option_netlink));
  return state;
}

Result<Fd> build(const State& state, Destination& destination) {
  if (state.groups.size() > group_words_limit) return fail(ErrorKind::invalid, "too many netlink groups");
  Fd socket(::socket(AF_NETLINK, state.type | SOCK_CLOEXEC, state.protocol));
  if (!socket) return fail_errno("make a netlink socket of protocol {}", state.protocol);
  const int fd = socket.get();
  const SocketClass is{AF_NETLINK, state.type, state.protocol};
  TRY(write_socket_options(fd, is, state.options, OptionStage::early, destination));
  for (const auto& name : state.on) {
    const auto known = std::find_if(switches.begin(), switches.end(), [&](auto& each) { return name == each.first; });
    if (known == switches.end()) return fail(ErrorKind::invalid, "unknown netlink option {}", name);
    TRY(set_int_option(fd, SOL_NETLINK, known->second, 1));
  }
  if (state.port != 0) {
    const sockaddr_nl address{.nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = state.port, .nl_groups = 0};
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      return fail_errno("bind a netlink socket to port {}", state.port);
  }
  for (std::size_t group = 0; group < state.groups.size() * 32; ++group)
    if (state.groups[group / 32] >> (group % 32) & 1)
      TRY(set_int_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, static_cast<int>(group + 1)));
  if (state.peer_port != 0 || state.peer_groups != 0) {
    const sockaddr_nl address{
        .nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = state.peer_port, .nl_groups = state.peer_groups};
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      return fail_errno("connect a netlink socket");
  }
  TRY(write_socket_options(fd, is, state.options, OptionStage::late, destination));
  return socket;
}

}  // namespace

const Kind netlink_kind{.name = "netlink",
                        .matches = matches,
                        .preflight = preflight,
                        .capture = captures<State, capture>,
                        .build = builds<State, build>,
                        .attach = nothing_to_attach,
                        .open = nothing_to_open};

}  // namespace godwit::objects
