#include "objects/socket_options.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <climits>
#include <unordered_map>

namespace godwit::objects {
namespace {

// Newer than the 6.1 headers.
constexpr int so_passpidfd = 76;
constexpr int ip_local_port_range = 51;
constexpr int tcp_rto_max_ms = 44;

enum class Form { integer, linger, time, wide };

/// What a new socket has, as far as it is the same everywhere.
constexpr std::int64_t varies = INT64_MIN;

struct OptionSpec {
  const char* name;
  int level;
  int number;
  unsigned sets;
  std::int64_t initial;
  Form form = Form::integer;
  OptionStage stage = OptionStage::early;
};

#define OPTION(level, name, sets, ...)    \
  OptionSpec {                            \
#name, level, name, sets, __VA_ARGS__ \
  }

constexpr unsigned inet = option_ipv4 | option_ipv6;

/// All options that can be both read and set. Order matters where one setting depends on another.
constexpr std::array option_specs = {
    OPTION(IPPROTO_IPV6, IPV6_V6ONLY, option_ipv6, varies),
    OPTION(SOL_SOCKET, SO_REUSEPORT, inet | option_unix, 0),
    OPTION(SOL_SOCKET, SO_REUSEADDR, inet, 0, Form::integer, OptionStage::late),
    OPTION(SOL_SOCKET, SO_KEEPALIVE, option_tcp, 0),
    OPTION(SOL_SOCKET, SO_BROADCAST, option_udp, 0),
    OPTION(SOL_SOCKET, SO_OOBINLINE, option_tcp, 0),
    OPTION(SOL_SOCKET, SO_LINGER, option_tcp | option_unix, -1, Form::linger, OptionStage::late),
    OPTION(SOL_SOCKET, SO_PRIORITY, option_base, 0, Form::integer, OptionStage::late),
    OPTION(SOL_SOCKET, SO_MARK, option_base, 0),
    OPTION(SOL_SOCKET, SO_DONTROUTE, inet, 0, Form::integer, OptionStage::late),
    OPTION(SOL_SOCKET, SO_PASSCRED, option_unix | option_netlink, 0),
    OPTION(SOL_SOCKET, SO_PASSSEC, option_unix | option_netlink, 0),
    OptionSpec{"SO_PASSPIDFD", SOL_SOCKET, so_passpidfd, option_unix, 0},
    OPTION(SOL_SOCKET, SO_NO_CHECK, option_udp, 0),
    OPTION(SOL_SOCKET, SO_RCVLOWAT, option_base, 1, Form::integer, OptionStage::late),
    OptionSpec{"SO_RCVTIMEO", SOL_SOCKET, SO_RCVTIMEO_NEW, option_base, 0, Form::time, OptionStage::late},
    OptionSpec{"SO_SNDTIMEO", SOL_SOCKET, SO_SNDTIMEO_NEW, option_base, 0, Form::time, OptionStage::late},
    OptionSpec{"SO_TIMESTAMP", SOL_SOCKET, SO_TIMESTAMP_OLD, option_udp | option_unix | option_tcp, 0},
    OptionSpec{"SO_TIMESTAMPNS", SOL_SOCKET, SO_TIMESTAMPNS_OLD, option_udp | option_unix, 0},
    OptionSpec{"SO_TIMESTAMPING", SOL_SOCKET, SO_TIMESTAMPING_OLD, option_udp | option_tcp, 0, Form::integer,
               OptionStage::late},
    OPTION(SOL_SOCKET, SO_RXQ_OVFL, option_udp | option_unix, 0),
    OPTION(SOL_SOCKET, SO_PEEK_OFF, option_base, -1, Form::integer, OptionStage::late),
    OPTION(SOL_SOCKET, SO_SELECT_ERR_QUEUE, option_udp | option_tcp, 0),
    OPTION(SOL_SOCKET, SO_BUSY_POLL, option_udp | option_tcp, varies),
    OPTION(SOL_SOCKET, SO_MAX_PACING_RATE, option_udp | option_tcp, -1, Form::wide),
    OPTION(SOL_SOCKET, SO_RCVMARK, option_udp, 0),

    OPTION(IPPROTO_IP, IP_TOS, inet, 0),
    OPTION(IPPROTO_IP, IP_TTL, inet, varies),
    OPTION(IPPROTO_IP, IP_MTU_DISCOVER, inet, varies),
    OPTION(IPPROTO_IP, IP_RECVERR, inet, 0),
    OPTION(IPPROTO_IP, IP_FREEBIND, inet, 0),
    OPTION(IPPROTO_IP, IP_TRANSPARENT, option_ipv4, 0),
    OPTION(IPPROTO_IP, IP_MINTTL, option_ipv4, 0),
    OPTION(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, inet, 0),
    OPTION(IPPROTO_IP, IP_PKTINFO, option_udp | option_listener, 0),
    OPTION(IPPROTO_IP, IP_RECVTTL, option_udp | option_listener, 0),
    OPTION(IPPROTO_IP, IP_RECVTOS, option_udp | option_listener, 0),
    OPTION(IPPROTO_IP, IP_RECVOPTS, option_udp, 0),
    OPTION(IPPROTO_IP, IP_RETOPTS, option_udp, 0),
    OPTION(IPPROTO_IP, IP_RECVORIGDSTADDR, option_udp, 0),
    OPTION(IPPROTO_IP, IP_RECVFRAGSIZE, option_udp, 0),
    OPTION(IPPROTO_IP, IP_CHECKSUM, option_udp, 0),
    OPTION(IPPROTO_IP, IP_RECVERR_RFC4884, option_udp, 0),
    OPTION(IPPROTO_IP, IP_MULTICAST_TTL, option_udp, 1),
    OPTION(IPPROTO_IP, IP_MULTICAST_LOOP, option_udp, 1),
    OPTION(IPPROTO_IP, IP_MULTICAST_ALL, option_udp, 1),
    OptionSpec{"IP_UNICAST_IF", IPPROTO_IP, 50, option_udp, 0},
    OptionSpec{"IPV6_UNICAST_IF", IPPROTO_IPV6, 76, option_udp, 0},
    OptionSpec{"IP_MULTICAST_IF", IPPROTO_IP, IP_MULTICAST_IF, option_udp, 0},
    OptionSpec{"IP_LOCAL_PORT_RANGE", IPPROTO_IP, ip_local_port_range, option_udp | option_listener, 0},

    OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS, option_ipv6, varies),
    OPTION(IPPROTO_IPV6, IPV6_TCLASS, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_RECVERR, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER, option_ipv6, varies),
    OPTION(IPPROTO_IPV6, IPV6_DONTFRAG, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, option_ipv6, varies),
    OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_MINHOPCOUNT, option_ipv6, 0),
    OPTION(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, option_udp, 1),
    OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, option_udp, 1),
    OPTION(IPPROTO_IPV6, IPV6_MULTICAST_IF, option_udp, 0),
    OPTION(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, option_udp, 0),
    OPTION(IPPROTO_IPV6, IPV6_RECVPATHMTU, option_udp, 0),

    OPTION(IPPROTO_TCP, TCP_NODELAY, option_tcp, 0),
    OPTION(IPPROTO_TCP, TCP_CORK, option_tcp, 0, Form::integer, OptionStage::late),
    OPTION(IPPROTO_TCP, TCP_KEEPIDLE, option_tcp, varies),
    OPTION(IPPROTO_TCP, TCP_KEEPINTVL, option_tcp, varies),
    OPTION(IPPROTO_TCP, TCP_KEEPCNT, option_tcp, varies),
    OPTION(IPPROTO_TCP, TCP_SYNCNT, option_listener, varies),
    OPTION(IPPROTO_TCP, TCP_LINGER2, option_tcp, varies),
    OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT, option_listener, 0),
    OPTION(IPPROTO_TCP, TCP_FASTOPEN, option_listener, 0, Form::integer, OptionStage::late),
    OPTION(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, option_listener, 0),
    OPTION(IPPROTO_TCP, TCP_SAVE_SYN, option_listener, 0),
    OPTION(IPPROTO_TCP, TCP_WINDOW_CLAMP, option_listener, 0),
    OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT, option_tcp, 0),
    OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT, option_tcp, varies),
    OPTION(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, option_tcp, 0),
    OPTION(IPPROTO_TCP, TCP_INQ, option_tcp, 0),
    OPTION(IPPROTO_TCP, TCP_TX_DELAY, option_listener, 0),
    OptionSpec{"TCP_RTO_MAX_MS", IPPROTO_TCP, tcp_rto_max_ms, option_tcp, varies},

    OPTION(IPPROTO_UDP, UDP_CORK, option_udp, 0, Form::integer, OptionStage::late),
    OptionSpec{"UDP_SEGMENT", IPPROTO_UDP, 103, option_udp, 0},
    OptionSpec{"UDP_GRO", IPPROTO_UDP, 104, option_udp, 0},
    OptionSpec{"UDP_NO_CHECK6_TX", IPPROTO_UDP, 101, option_udp, 0},
    OptionSpec{"UDP_NO_CHECK6_RX", IPPROTO_UDP, 102, option_udp, 0},

};

/// Those that are not set like the others.
constexpr std::array<const char*, 4> special_names = {"SO_SNDBUF", "SO_RCVBUF", "SO_BUF_LOCK", "SO_LOCK_FILTER"};

std::optional<std::int64_t> read_option(int fd, const OptionSpec& spec) {
  union {
    int integer;
    struct linger linger;
    std::array<std::int64_t, 2> time;
    std::int64_t wide;
  } value{};
  socklen_t length = spec.form == Form::integer  ? sizeof(int)
                     : spec.form == Form::linger ? sizeof(struct linger)
                     : spec.form == Form::wide   ? sizeof(std::int64_t)
                                                 : sizeof(value.time);
  if (::getsockopt(fd, spec.level, spec.number, &value, &length) != 0) return std::nullopt;
  switch (spec.form) {
    case Form::integer:
      return value.integer;
    case Form::linger:
      return value.linger.l_onoff ? value.linger.l_linger : -1;
    case Form::time:
      return value.time[0] * 1'000'000 + value.time[1];
    case Form::wide:
      return value.wide;
  }
  return std::nullopt;
}

bool write_option(int fd, const OptionSpec& spec, std::int64_t number) {
  switch (spec.form) {
    case Form::integer: {
      const int value = static_cast<int>(number);
      return ::setsockopt(fd, spec.level, spec.number, &value, sizeof(value)) == 0;
    }
    case Form::linger: {
      const struct linger value { number >= 0, number >= 0 ? static_cast<int>(number) : 0 };
      return ::setsockopt(fd, spec.level, spec.number, &value, sizeof(value)) == 0;
    }
    case Form::time: {
      const std::array<std::int64_t, 2> value = {number / 1'000'000, number % 1'000'000};
      return ::setsockopt(fd, spec.level, spec.number, &value, sizeof(value)) == 0;
    }
    case Form::wide:
      return ::setsockopt(fd, spec.level, spec.number, &number, sizeof(number)) == 0;
  }
  return false;
}

/// What new sockets have in the pod's network, by class and option: what is so already need not be set.
struct Fresh {
  struct Values {
    std::unordered_map<std::string, std::int64_t> numbers;
    std::string congestion;
  };
  std::map<SocketClass, Values> classes;
};

const std::unordered_map<std::string_view, const OptionSpec*>& option_index() {
  static const auto index = [] {
    std::unordered_map<std::string_view, const OptionSpec*> made;
    for (const auto& spec : option_specs) made.emplace(spec.name, &spec);
    return made;
  }();
  return index;
}

std::string read_text_option(int fd, int level, int number) {
  std::array<char, 64> text{};
  socklen_t length = text.size();
  if (::getsockopt(fd, level, number, text.data(), &length) != 0) return {};
  return std::string(text.data(), ::strnlen(text.data(), length));
}

const Fresh::Values& fresh_values(const SocketClass& key, Destination& destination) {
  auto& fresh = destination.shared<Fresh>("socket options");
  const auto [place, inserted] = fresh.classes.try_emplace(key);
  if (!inserted) return place->second;
  const Fd socket(::socket(key.domain, key.type | SOCK_CLOEXEC, key.protocol));
  for (const auto& spec : option_specs)
    if (const auto value = read_option(socket.get(), spec)) place->second.numbers[spec.name] = *value;
  place->second.numbers["SO_SNDBUF"] = int_option(socket.get(), SOL_SOCKET, SO_SNDBUF);
  place->second.numbers["SO_RCVBUF"] = int_option(socket.get(), SOL_SOCKET, SO_RCVBUF);
  place->second.congestion = read_text_option(socket.get(), IPPROTO_TCP, TCP_CONGESTION);
  return place->second;
}

/// The kernel doubles what it is given, so half of what it told is what makes it tell the same again.
Result<void> write_buffers(int fd, const SocketOptions& options, const Fresh::Values& fresh) {
  const auto lock = options.value("SO_BUF_LOCK");
  for (const auto& [name, number] : {std::pair{"SO_SNDBUF", SO_SNDBUFFORCE}, std::pair{"SO_RCVBUF", SO_RCVBUFFORCE}}) {
    const auto value = options.value(name);
    const auto known = fresh.numbers.find(name);
    const bool locked = lock & (number == SO_SNDBUFFORCE ? 1 : 2);
    if (value <= 0 || (!locked && known != fresh.numbers.end() && known->second == value)) continue;
    TRY(set_int_option(fd, SOL_SOCKET, number, static_cast<int>(value / 2)));
    if (!locked) TRY(set_int_option(fd, SOL_SOCKET, SO_BUF_LOCK, static_cast<int>(lock)));
  }
  return {};
}

Result<void> read_filter(const Descriptor& descriptor, SocketOptions& options) {
  socklen_t count = 0;
  if (::getsockopt(descriptor.fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES)
      return fail(ErrorKind::refused, "{}: a socket with an eBPF filter can't move", describe(descriptor));
    return {};
  }
  if (count == 0) return {};
  options.filter.resize(count * sizeof(sock_filter));
  if (::getsockopt(descriptor.fd, SOL_SOCKET, SO_GET_FILTER, options.filter.data(), &count) != 0)
    return fail_errno("{}: read the socket's filter", describe(descriptor));
  return {};
}

}  // namespace

std::int64_t SocketOptions::value(std::string_view name, std::int64_t otherwise) const {
  for (const auto& [key, number] : values)
    if (key == name) return number;
  return otherwise;
}

int int_option(int fd, int level, int name, int otherwise) {
  int value = otherwise;
  socklen_t length = sizeof(value);
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : otherwise;
}

Result<void> set_int_option(int fd, int level, int name, int value) {
  if (::setsockopt(fd, level, name, &value, sizeof(value)) != 0)
    return fail_errno("set option {} of level {} to {}", name, level, value);
  return {};
}

Result<SocketOptions> read_socket_options(const Descriptor& descriptor, unsigned sets) {
  SocketOptions options;
  options.values.reserve(16);
  sets |= option_base;
  for (const auto& spec : option_specs) {
    if ((spec.sets & sets) == 0) continue;
    // IPv6 options on an IPv4 socket only cost a refused call.
    if (spec.level == IPPROTO_IPV6 && (sets & option_ipv6) == 0) continue;
    const auto value = read_option(descriptor.fd, spec);
    if (value && *value != spec.initial) options.values.emplace_back(spec.name, *value);
  }
  std::array<std::uint32_t, SK_MEMINFO_VARS> memory{};
  socklen_t length = sizeof(memory);
  if (::getsockopt(descriptor.fd, SOL_SOCKET, SO_MEMINFO, memory.data(), &length) != 0) return fail_errno("SO_MEMINFO");
  const int lock = int_option(descriptor.fd, SOL_SOCKET, SO_BUF_LOCK);
  // The send buffer follows the congestion window, which begins anew; the receive buffer has been promised to the peer.
  if ((lock & 1) || (sets & option_established) == 0)
    options.values.emplace_back("SO_SNDBUF", memory[SK_MEMINFO_SNDBUF]);
  options.values.emplace_back("SO_RCVBUF", memory[SK_MEMINFO_RCVBUF]);
  if (lock != 0) options.values.emplace_back("SO_BUF_LOCK", lock);
  if (sets & option_tcp) options.congestion = read_text_option(descriptor.fd, IPPROTO_TCP, TCP_CONGESTION);
  if (sets & inet) options.device = read_text_option(descriptor.fd, SOL_SOCKET, SO_BINDTODEVICE);
  TRY(read_filter(descriptor, options));
  if (!options.filter.empty() && int_option(descriptor.fd, SOL_SOCKET, SO_LOCK_FILTER) != 0)
    options.values.emplace_back("SO_LOCK_FILTER", 1);
  options.flags = descriptor.flags & O_NONBLOCK;
  options.uid = descriptor.status.st_uid;
  options.gid = descriptor.status.st_gid;
  return options;
}

Result<void> write_socket_options(int fd, const SocketClass& is, const SocketOptions& options, OptionStage stage,
                                  Destination& destination) {
  const auto& fresh = fresh_values(is, destination);
  if (stage == OptionStage::early) {
    // A socket belongs to whoever made it (sk_uid: routing by uid, /proc/net); chown is how that is told.
    if ((options.uid != 0 || options.gid != 0) && ::fchown(fd, options.uid, options.gid) != 0)
      return fail_errno("chown a socket to {}:{}", options.uid, options.gid);
    TRY(write_buffers(fd, options, fresh));
    if (!options.congestion.empty() && options.congestion != fresh.congestion &&
        ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, options.congestion.data(), options.congestion.size()) != 0)
      return fail_errno("use congestion control {}", options.congestion);
  }
  for (const auto& [name, number] : options.values) {
    const auto found = option_index().find(name);
    if (found == option_index().end()) {
      if (std::find(special_names.begin(), special_names.end(), name) != special_names.end()) continue;
      return fail(ErrorKind::invalid, "unknown socket option {}", name);
    }
    const OptionSpec& spec = *found->second;
    if (spec.stage != stage) continue;
    if (const auto known = fresh.numbers.find(name); known != fresh.numbers.end() && known->second == number) continue;
    if (!write_option(fd, spec, number)) return fail_errno("set {} to {}", name, number);
  }
  if (stage == OptionStage::early) return {};
  if (!options.device.empty() &&
      ::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, options.device.data(), options.device.size()) != 0)
    return fail_errno("bind a socket to device {}", options.device);
  if (!options.filter.empty()) {
    std::vector<sock_filter> program(options.filter.size() / sizeof(sock_filter));
    std::memcpy(program.data(), options.filter.data(), program.size() * sizeof(sock_filter));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    if (program.size() > BPF_MAXINSNS || ::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) != 0)
      return fail_errno("attach a socket filter of {} instructions", program.size());
    if (options.value("SO_LOCK_FILTER") != 0) TRY(set_int_option(fd, SOL_SOCKET, SO_LOCK_FILTER, 1));
  }
  if (options.flags != 0) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (::fcntl(fd, F_SETFL, flags | (options.flags & O_NONBLOCK)) != 0) return fail_errno("set the flags of a socket");
  }
  return {};
}

bool has_late_options(const SocketClass& is, const SocketOptions& options, Destination& destination) {
  const auto& fresh = fresh_values(is, destination);
  return !options.device.empty() || !options.filter.empty() ||
         std::ranges::any_of(options.values, [&](const auto& option) {
           const auto found = option_index().find(option.first);
           const auto known = fresh.numbers.find(option.first);
           return found != option_index().end() && found->second->stage == OptionStage::late &&
                  option.first != "SO_REUSEADDR" && (known == fresh.numbers.end() || known->second != option.second);
         });
}

Result<void> check_socket_options(const Descriptor& descriptor) {
  SocketOptions filter;
  TRY(read_filter(descriptor, filter));
  if (int_option(descriptor.fd, SOL_SOCKET, SO_ZEROCOPY) != 0)
    return fail(ErrorKind::refused,
                "{}: a socket with zero-copy sends (SO_ZEROCOPY) can't move: its counter of "
                "notifications can't be set",
                describe(descriptor));
  if (int_option(descriptor.fd, SOL_SOCKET, SO_TIMESTAMPING_OLD) & SOF_TIMESTAMPING_OPT_ID)
    return fail(ErrorKind::refused, "{}: a socket that numbers its time stamps (SOF_TIMESTAMPING_OPT_ID) can't move",
                describe(descriptor));
  return {};
}

InetAddress inet_address(const SocketAddress& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address.storage);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return {text.data(), ntohs(v4.sin_port), 0};
  }
  if (address.storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    return {text.data(), ntohs(v6.sin6_port), v6.sin6_scope_id};
  }
  return {};
}

Result<SocketAddress> socket_address(int family, const InetAddress& address) {
  SocketAddress result;
  result.storage.ss_family = static_cast<sa_family_t>(family);
  int parsed = 0;
  if (family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(result.storage);
    v4.sin_port = htons(address.port);
    parsed = ::inet_pton(AF_INET, address.ip.c_str(), &v4.sin_addr);
    result.length = sizeof(v4);
  } else if (family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(result.storage);
    v6.sin6_port = htons(address.port);
    v6.sin6_scope_id = address.scope;
    parsed = ::inet_pton(AF_INET6, address.ip.c_str(), &v6.sin6_addr);
    result.length = sizeof(v6);
  }
  if (parsed != 1) return fail(ErrorKind::invalid, "'{}' is no address of family {}", address.ip, family);
  return result;
}

std::string describe(const InetAddress& address) {
  return address.ip.find(':') == std::string::npos ? fmt::format("{}:{}", address.ip, address.port)
                                                   : fmt::format("[{}]:{}", address.ip, address.port);
}

Result<SocketAddress> local_address(int fd) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (::getsockname(fd, address.get(), &address.length) != 0) return fail_errno("getsockname");
  return address;
}

std::optional<SocketAddress> peer_address(int fd) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (::getpeername(fd, address.get(), &address.length) == 0) return address;
  // A closed connection's peer is told only to who asks for no more bytes than there are.
  for (const socklen_t length : {sizeof(sockaddr_in6), sizeof(sockaddr_in)}) {
    address.length = length;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &address.storage, &address.length) == 0) return address;
  }
  return std::nullopt;
}

SocketClass socket_class(const Descriptor& descriptor) {
  if (!S_ISSOCK(descriptor.status.st_mode)) return {};
  return {int_option(descriptor.fd, SOL_SOCKET, SO_DOMAIN, -1), int_option(descriptor.fd, SOL_SOCKET, SO_TYPE, -1),
          int_option(descriptor.fd, SOL_SOCKET, SO_PROTOCOL, -1)};
}

namespace {
Result<void> ensure_buffer(int fd, std::size_t bytes, int name, int force, int lock_bit) {
  const int now = int_option(fd, SOL_SOCKET, name);
  // Payload is charged with the memory that carries it, which may be twice as much, and small messages cost more.
  const std::size_t need = std::min<std::size_t>(bytes * 2 + 64 * KiB, INT_MAX / 2);
  if (static_cast<std::size_t>(now) >= need) return {};
  const int lock = int_option(fd, SOL_SOCKET, SO_BUF_LOCK);
  TRY(set_int_option(fd, SOL_SOCKET, force, static_cast<int>(need / 2)));
  if ((lock & lock_bit) == 0) TRY(set_int_option(fd, SOL_SOCKET, SO_BUF_LOCK, lock));
  return {};
}
}  // namespace

Result<void> ensure_send_buffer(int fd, std::size_t bytes) {
  return ensure_buffer(fd, bytes, SO_SNDBUF, SO_SNDBUFFORCE, 1);
}

Result<void> ensure_receive_buffer(int fd, std::size_t bytes) {
  return ensure_buffer(fd, bytes, SO_RCVBUF, SO_RCVBUFFORCE, 2);
}

std::string describe(const Descriptor& descriptor) {
  if (descriptor.holders.empty()) return descriptor.link;
  const auto& holder = descriptor.holders.front();
  return fmt::format("process {} fd {} ({})", holder.process.value, holder.number, descriptor.link);
}

}  // namespace godwit::objects
