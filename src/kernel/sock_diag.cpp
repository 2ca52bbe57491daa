#include "kernel/sock_diag.hpp"

#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <functional>

#include "kernel/procfs.hpp"

namespace godwit::kernel {
namespace {

constexpr std::uint16_t diag_md5sig = 18;  // INET_DIAG_MD5SIG

/// Calls `take` for each message of a dump.
Result<void> dump(int diag, const void* request, std::size_t size, std::uint16_t answer,
                  const std::function<void(const nlmsghdr&)>& take) {
  if (::send(diag, request, size, 0) < 0) return fail_errno("ask sock_diag");
  std::vector<char> buffer(64 * KiB);
  for (;;) {
    const ssize_t count = ::recv(diag, buffer.data(), buffer.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno("read sock_diag");
    auto left = static_cast<unsigned>(count);
    for (auto* header = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(header, left);
         header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_type == NLMSG_DONE) return {};
      if (header->nlmsg_type == NLMSG_ERROR) {
        errno = -reinterpret_cast<nlmsgerr*>(NLMSG_DATA(header))->error;
        return fail_errno("sock_diag");
      }
      if (header->nlmsg_type == answer) take(*header);
    }
  }
}

void each_attribute(const nlmsghdr& header, std::size_t fixed, const std::function<void(const rtattr&)>& take) {
  const auto* body = reinterpret_cast<const char*>(NLMSG_DATA(&header)) + NLMSG_ALIGN(fixed);
  auto left = static_cast<int>(header.nlmsg_len - NLMSG_SPACE(fixed));
  for (const auto* attribute = reinterpret_cast<const rtattr*>(body); RTA_OK(attribute, left);
       attribute = RTA_NEXT(attribute, left))
    take(*attribute);
}

std::vector<std::uint32_t> words(const rtattr& attribute) {
  std::vector<std::uint32_t> result(RTA_PAYLOAD(&attribute) / sizeof(std::uint32_t));
  std::memcpy(result.data(), RTA_DATA(&attribute), result.size() * sizeof(std::uint32_t));
  return result;
}

Result<Fd> network_of(int fd) {
  Fd network(::ioctl(fd, SIOCGSKNS));
  if (!network) return fail_errno("find the network namespace of a socket");
  return network;
}

/// What `make` opens in the network namespace of the socket.
Result<Fd> open_there(int fd, const std::function<int()>& make) {
  const Fd there = TRY(network_of(fd));
  const Fd probe(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!probe) return fail_errno("make a socket");
  const Fd here = TRY(network_of(probe.get()));
  if (::setns(there.get(), CLONE_NEWNET) != 0) return fail_errno("enter a network namespace");
  Fd made(make());
  const int code = errno;
  if (::setns(here.get(), CLONE_NEWNET) != 0) return fail_errno("come back to the node's network namespace");
  if (made) return made;
  errno = code;
  return fail_errno("open what is in a pod's network namespace");
}

}  // namespace

Result<Fd> open_socket_beside(int fd, int domain, int type, int protocol) {
  return open_there(fd, [&] { return ::socket(domain, type | SOCK_CLOEXEC, protocol); });
}

Result<std::string> read_network_file(int fd, const std::string& name) {
  // What /proc/net shows is decided when it is opened.
  const std::string path = "thread-self/net/" + name;
  const Fd file = TRY(open_there(fd, [&] { return ::openat(proc_directory(), path.c_str(), O_RDONLY | O_CLOEXEC); }));
  std::string text;
  std::array<char, 4096> part;
  for (ssize_t count = 0; (count = ::read(file.get(), part.data(), part.size())) > 0;)
    text.append(part.data(), static_cast<std::size_t>(count));
  return text;
}

Result<Fd> open_sock_diag(int fd) {
  Fd diag = TRY(open_socket_beside(fd, AF_NETLINK, SOCK_DGRAM, NETLINK_SOCK_DIAG));
  const int most = 4 * 1024 * 1024;
  ::setsockopt(diag.get(), SOL_SOCKET, SO_RCVBUFFORCE, &most, sizeof(most));
  return diag;
}

Result<std::vector<TcpSocket>> tcp_sockets(int diag, int family, unsigned states, bool details) {
  struct {
    nlmsghdr header;
    inet_diag_req_v2 body;
  } request{};
  request.header = {
      .nlmsg_len = sizeof(request), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP};
  request.body.sdiag_family = static_cast<std::uint8_t>(family);
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = states;
  if (details) request.body.idiag_ext = 1 << (INET_DIAG_INFO - 1);
  std::vector<TcpSocket> sockets;
  TRY(dump(diag, &request, sizeof(request), SOCK_DIAG_BY_FAMILY, [&](const nlmsghdr& header) {
    if (header.nlmsg_len < NLMSG_LENGTH(sizeof(inet_diag_msg))) return;
    inet_diag_msg message;
    std::memcpy(&message, NLMSG_DATA(&header), sizeof(message));
    TcpSocket socket{.inode = message.idiag_inode,
                     .state = message.idiag_state,
                     .local_port = ntohs(message.id.idiag_sport),
                     .remote_port = ntohs(message.id.idiag_dport),
                     .send_queue = message.idiag_wqueue,
                     .retransmits = message.idiag_retrans};
    each_attribute(header, sizeof(message), [&](const rtattr& attribute) {
      if ((attribute.rta_type & NLA_TYPE_MASK) == diag_md5sig) socket.signed_md5 = true;
    });
    sockets.push_back(socket);
  }));
  return sockets;
}

Result<std::size_t> count_lingering_tcp(int diag) {
  constexpr unsigned fin_wait1 = 1 << 4, last_ack = 1 << 9, closing = 1 << 11;
  std::size_t count = 0;
  for (const int family : {AF_INET, AF_INET6})
    for (const auto& socket : TRY(tcp_sockets(diag, family, fin_wait1 | last_ack | closing)))
      if (socket.inode == 0) ++count;
  return count;
}

Result<std::vector<UnixSocket>> unix_sockets(int diag) {
  struct {
    nlmsghdr header;
    unix_diag_req body;
  } request{};
  request.header = {
      .nlmsg_len = sizeof(request), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP};
  request.body.sdiag_family = AF_UNIX;
  request.body.udiag_states = ~0u;
  request.body.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  std::vector<UnixSocket> sockets;
  TRY(dump(diag, &request, sizeof(request), SOCK_DIAG_BY_FAMILY, [&](const nlmsghdr& header) {
    if (header.nlmsg_len < NLMSG_LENGTH(sizeof(unix_diag_msg))) return;
    unix_diag_msg message;
    std::memcpy(&message, NLMSG_DATA(&header), sizeof(message));
    UnixSocket socket{.inode = message.udiag_ino, .type = message.udiag_type, .state = message.udiag_state};
    each_attribute(header, sizeof(message), [&](const rtattr& attribute) {
      const auto* data = static_cast<const std::uint8_t*>(RTA_DATA(&attribute));
      const std::size_t size = RTA_PAYLOAD(&attribute);
      switch (attribute.rta_type) {
        case UNIX_DIAG_NAME:
          socket.name.assign(data, data + size);
          break;
        case UNIX_DIAG_VFS:
          if (size >= sizeof(unix_diag_vfs)) socket.bound_inode = words(attribute)[0];
          break;
        case UNIX_DIAG_PEER:
          if (size >= 4) socket.peer = words(attribute)[0];
          break;
        case UNIX_DIAG_ICONS:
          socket.pending = words(attribute);
          break;
        case UNIX_DIAG_RQLEN:
          if (size >= 8) {
            socket.receive_queue = words(attribute)[0];
            socket.send_queue = words(attribute)[1];
          }
          break;
        case UNIX_DIAG_SHUTDOWN:
          socket.shutdown = *data;
          break;
        default:
          break;
      }
    });
    sockets.push_back(std::move(socket));
  }));
  return sockets;
}

}  // namespace godwit::kernel
