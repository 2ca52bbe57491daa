#include "pod/channel.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cstring>

namespace godwit::pod {

namespace {

constexpr std::size_t packet_limit = 64 * KiB;
/// First byte of a packet: where the bytes are.
constexpr std::uint8_t in_packet = 0;
constexpr std::uint8_t in_memfd = 1;  ///< which is the first descriptor

using Control = std::array<char, CMSG_SPACE(sizeof(int) * (message_descriptors + 1))>;

Result<Fd> memory_with(BytesView bytes) {
  Fd memory(memfd_create("message", MFD_CLOEXEC));
  if (!memory) return fail_errno("make a memfd for a message");
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t wrote = ::write(memory.get(), bytes.data() + done, bytes.size() - done);
    if (wrote < 0) return fail_errno("write a message of {} bytes", bytes.size());
    done += static_cast<std::size_t>(wrote);
  }
  return memory;
}

Result<Bytes> read_memory(int memory) {
  struct stat status {};
  if (fstat(memory, &status) != 0) return fail_errno("look at a message");
  if (static_cast<std::uint64_t>(status.st_size) > message_limit)
    return fail(ErrorKind::invalid, "message of {} bytes is over the limit", status.st_size);
  Bytes bytes(static_cast<std::size_t>(status.st_size));
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = pread(memory, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (got < 0) return fail_errno("read a message");
    if (got == 0) return fail(ErrorKind::invalid, "a message got shorter while it was read");
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

std::unexpected<Error> broken(const char* what) {
  if (errno == EPIPE || errno == ECONNRESET) return fail(ErrorKind::gone, "{}: the other side has closed", what);
  if (errno == EAGAIN) return fail(ErrorKind::busy, "{}: not now", what);
  return fail_errno("{}", what);
}

struct Address {
  Fd directory;
  sockaddr_un address{};
};

Result<Address> address_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos || slash == 0)
    return fail(ErrorKind::invalid, "socket path {} has no directory", path);
  Address result;
  result.directory = Fd(::open(path.substr(0, slash).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!result.directory) return fail_errno("open {}", path.substr(0, slash));
  const std::string name = fmt::format("/proc/self/fd/{}{}", result.directory.get(), path.substr(slash));
  if (name.size() >= sizeof result.address.sun_path)
    return fail(ErrorKind::invalid, "socket name {} is too long", name);
  result.address.sun_family = AF_UNIX;
  std::memcpy(result.address.sun_path, name.data(), name.size());
  return result;
}

Result<Fd> seqpacket() {
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return fail_errno("make a Unix socket");
  return socket;
}

}  // namespace

Result<void> send_message(int socket, BytesView bytes, std::span<const int> descriptors, int flags) {
  if (bytes.size() > message_limit || descriptors.size() > message_descriptors)
    return fail(ErrorKind::invalid, "message of {} bytes and {} descriptors is over the limit", bytes.size(),
                descriptors.size());
  std::uint8_t where = in_packet;
  Fd memory;
  std::vector<int> all(descriptors.begin(), descriptors.end());
  if (bytes.size() > packet_limit) {
    memory = TRY(memory_with(bytes));
    where = in_memfd;
    all.insert(all.begin(), memory.get());
  }
  iovec parts[2] = {{&where, 1}, {const_cast<std::uint8_t*>(bytes.data()), where == in_packet ? bytes.size() : 0}};
  msghdr header{};
  header.msg_iov = parts;
  header.msg_iovlen = 2;
  alignas(cmsghdr) Control control{};
  if (!all.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * all.size());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * all.size());
    std::memcpy(CMSG_DATA(rights), all.data(), sizeof(int) * all.size());
  }
  ssize_t sent = 0;
  do sent = sendmsg(socket, &header, flags | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0) return broken("send a message");
  return {};
}

Result<Message> receive_message(int socket, int flags) {
  auto message = TRY(receive_whatever_came(socket, flags));
  if (message.cut_short) return fail(ErrorKind::invalid, "there was no room for a message's descriptors");
  return message;
}

Result<Message> receive_whatever_came(int socket, int flags) {
  Bytes packet(1 + packet_limit);
  iovec part = {packet.data(), packet.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) Control control{};
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got = 0;
  do got = recvmsg(socket, &header, flags | MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN && (flags & MSG_DONTWAIT) == 0)
    return fail(ErrorKind::timeout, "no answer came in time");
  if (got < 0) return broken("receive a message");

  Message message;
  for (cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr; rights = CMSG_NXTHDR(&header, rights)) {
    if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof(int), sizeof fd);
      message.descriptors.emplace_back(fd);
    }
  }
  if (got == 0) return fail(ErrorKind::gone, "the other side has closed");
  if ((header.msg_flags & MSG_TRUNC) != 0) return fail(ErrorKind::invalid, "a message was too long");
  message.cut_short = (header.msg_flags & MSG_CTRUNC) != 0;
  if (packet[0] == in_memfd) {
    if (message.descriptors.empty()) return fail(ErrorKind::invalid, "a message without its memfd");
    message.bytes = TRY(read_memory(message.descriptors.front().get()));
    message.descriptors.erase(message.descriptors.begin());
  } else {
    message.bytes.assign(packet.begin() + 1, packet.begin() + got);
  }
  return message;
}

Result<Pair> seqpacket_pair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("make a socket pair");
  return Pair{Fd(ends[0]), Fd(ends[1])};
}

Result<Fd> listen_at(const std::string& path) {
  const auto address = TRY(address_of(path));
  auto socket = TRY(seqpacket());
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.address), sizeof address.address) != 0)
    return fail_errno("bind {}", path);
  if (chmod(path.c_str(), 0600) != 0) return fail_errno("chmod {}", path);
  if (::listen(socket.get(), 16) != 0) return fail_errno("listen at {}", path);
  return socket;
}

Result<Fd> connect_to(const std::string& path) {
  const auto address = TRY(address_of(path));
  auto socket = TRY(seqpacket());
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.address), sizeof address.address) != 0)
    return fail_errno("connect to {}", path);
  return socket;
}

}  // namespace godwit::pod
