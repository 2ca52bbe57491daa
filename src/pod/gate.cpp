#include "pod/gate.hpp"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernel/bpf.hpp"
#include "kernel/netlink.hpp"

namespace godwit::pod {

using kernel::bpf::Assembler;
using kernel::bpf::Cell;

namespace {

constexpr int queue_frames = 16384;
// virtio_net_hdr (linux/virtio_net.h is no C++), the size that packet sockets have.
constexpr std::size_t header_size = 10;
constexpr std::size_t frame_limit = header_size + 14 + 8 + 65536;  // Ethernet, two VLAN tags, a super-frame
constexpr std::int32_t helper_redirect = 23;                       // bpf_redirect(ifindex, flags)

// Of frames that we deliver ourselves. It ends with the namespace: the pod never sees it.
constexpr std::int32_t delivered_mark = 0x60d017;

constexpr auto number(Gate::State state) {
  return static_cast<std::int32_t>(state);
}

Result<Fd> load_towards_pod(const Cell& cell, int tap_index) {
  Assembler a;
  const auto pass = a.label();
  const auto drop = a.label();
  a.load_context(2, offsetof(__sk_buff, mark));
  a.jump_if_equal(2, delivered_mark, pass);
  a.load_cell(2, cell);
  a.jump_if_equal(2, number(Gate::State::open), pass);
  a.jump_if_equal(2, number(Gate::State::shut), drop);
  a.move(1, tap_index);
  a.move(2, 0);
  a.call(helper_redirect);
  a.exit();
  a.place(pass);
  a.leave_with(kernel::bpf::tcx_next);
  a.place(drop);
  a.leave_with(kernel::bpf::tcx_drop);
  return kernel::bpf::load_tcx("gate_to_pod", kernel::bpf::tcx_egress, a.finish());
}

Result<Fd> load_from_pod(const Cell& cell) {
  Assembler a;
  const auto pass = a.label();
  a.load_cell(2, cell);
  a.jump_if_equal(2, number(Gate::State::open), pass);
  a.jump_if_equal(2, number(Gate::State::pause), pass);
  a.leave_with(kernel::bpf::tcx_drop);
  a.place(pass);
  a.leave_with(kernel::bpf::tcx_next);
  return kernel::bpf::load_tcx("gate_from_pod", kernel::bpf::tcx_ingress, a.finish());
}

/// A tap that nothing but the program sends to: no address, no neighbours, in no bridge. It lives as long as the fd.
Result<Fd> open_tap(int& index) {
  Fd tap(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!tap) return fail_errno("open /dev/net/tun");
  ifreq request{};
  std::strncpy(request.ifr_name, "gwt%d", IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (ioctl(tap.get(), TUNSETIFF, &request) != 0) return fail_errno("make a tap device");
  int size = header_size;
  if (ioctl(tap.get(), TUNSETVNETHDRSZ, &size) != 0) return fail_errno("set up {}", request.ifr_name);
  // UDP segmentation is known since 6.2; without it the kernel cuts such frames itself, which is the same on the wire.
  constexpr unsigned long tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  constexpr unsigned long udp = 0x20 | 0x40;
  if (ioctl(tap.get(), TUNSETOFFLOAD, tcp | udp) != 0 && ioctl(tap.get(), TUNSETOFFLOAD, tcp) != 0)
    return fail_errno("set up {}", request.ifr_name);

  const auto netlink = TRY(kernel::Netlink::open());
  index = TRY(netlink.index(request.ifr_name));
  TRY(netlink.no_automatic_address(index));
  TRY(netlink.set_queue_length(index, queue_frames));
  TRY(netlink.set_mtu(index, 65521));
  TRY(netlink.set_up(index, true));
  return tap;
}

/// Sends whole frames out of the device, marked so that the program lets them pass. (PACKET_QDISC_BYPASS would pass it
/// too, but drops what the device can't take as it is, where the usual way cuts it up.)
Result<Fd> open_sender(int index) {
  Fd sender(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!sender) return fail_errno("open a packet socket");
  const int on = 1;
  if (setsockopt(sender.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0 ||
      setsockopt(sender.get(), SOL_SOCKET, SO_MARK, &delivered_mark, sizeof delivered_mark) != 0)
    return fail_errno("set up a packet socket");
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = index;
  if (bind(sender.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0)
    return fail_errno("bind a packet socket to device {}", index);
  return sender;
}

}  // namespace

struct Gate::Parts {
  Cell cell{Fd()};
  Fd tap, to_pod, from_pod;  // the links; each holds its program
  Fd sender;
};

Gate::Gate(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Gate::Gate(Gate&&) noexcept = default;
Gate& Gate::operator=(Gate&&) noexcept = default;
Gate::~Gate() = default;

Result<Gate> Gate::install(const std::string& node_device, State state) {
  auto parts = std::make_unique<Parts>();
  const int device = TRY(TRY(kernel::Netlink::open()).index(node_device));
  int tap_index = 0;
  parts->tap = TRY(open_tap(tap_index));
  parts->cell = TRY(Cell::create("gate_state", static_cast<std::uint32_t>(state)));
  const Fd to_pod = TRY(load_towards_pod(parts->cell, tap_index));
  const Fd from_pod = TRY(load_from_pod(parts->cell));
  parts->sender = TRY(open_sender(device));
  parts->to_pod = TRY(kernel::bpf::attach_tcx(to_pod.get(), kernel::bpf::tcx_egress, device));
  parts->from_pod = TRY(kernel::bpf::attach_tcx(from_pod.get(), kernel::bpf::tcx_ingress, device));
  return Gate(std::move(parts));
}

bool Gate::is_whole(const std::map<std::string, Fd>& descriptors) {
  return std::ranges::all_of(std::array{"gate.state", "gate.tap", "gate.to_pod", "gate.from_pod"},
                             [&](const char* name) { return descriptors.contains(name); });
}

Result<Gate> Gate::from(const std::string& node_device, std::map<std::string, Fd> descriptors) {
  auto parts = std::make_unique<Parts>();
  if (!is_whole(descriptors)) return fail(ErrorKind::invalid, "the gate of {} is not whole", node_device);
  parts->cell = Cell(std::move(descriptors["gate.state"]));
  parts->tap = std::move(descriptors["gate.tap"]);
  parts->to_pod = std::move(descriptors["gate.to_pod"]);
  parts->from_pod = std::move(descriptors["gate.from_pod"]);
  TRY(parts->cell.get());
  const int device = TRY(TRY(kernel::Netlink::open()).index(node_device));
  parts->sender = TRY(open_sender(device));
  return Gate(std::move(parts));
}

std::map<std::string, int> Gate::descriptors() const {
  return {{"gate.state", parts_->cell.fd()},
          {"gate.tap", parts_->tap.get()},
          {"gate.to_pod", parts_->to_pod.get()},
          {"gate.from_pod", parts_->from_pod.get()}};
}

Result<void> Gate::set(State state) {
  return parts_->cell.set(static_cast<std::uint32_t>(state));
}

Result<Gate::State> Gate::state() const {
  return static_cast<State>(TRY(parts_->cell.get()));
}

Result<Bytes> Gate::next_held() {
  // One for all, so that a small frame doesn't cost the clearing of a large buffer.
  static thread_local std::array<std::uint8_t, frame_limit> buffer;
  const ssize_t size = read(parts_->tap.get(), buffer.data(), buffer.size());
  if (size < 0 && errno != EAGAIN) return fail_errno("read a held frame");
  return Bytes(buffer.data(), buffer.data() + std::max<ssize_t>(size, 0));
}

int Gate::held_fd() const {
  return parts_->tap.get();
}

Result<void> Gate::deliver(BytesView frame) {
  if (frame.size() < header_size + sizeof(ether_header) || frame.size() > frame_limit)
    return fail(ErrorKind::invalid, "a held frame of {} bytes", frame.size());
  // ENOBUFS: the pod's receive backlog is full for the moment; the frame has been dropped as on any full queue.
  if (send(parts_->sender.get(), frame.data(), frame.size(), 0) < 0 && errno != ENOBUFS)
    return fail_errno("deliver a held frame of {} bytes", frame.size());
  return {};
}

Result<std::size_t> Gate::release() {
  std::size_t delivered = 0;
  const auto drain = [&]() -> Result<void> {
    for (;;) {
      const Bytes frame = TRY(next_held());
      if (frame.empty()) return {};
      TRY(deliver(frame));
      ++delivered;
    }
  };
  TRY(drain());
  TRY(set(State::open));
  TRY(drain());
  return delivered;
}

bool Gate::for_a_group(BytesView frame) {
  return frame.size() > header_size && (frame[header_size] & 1) != 0;
}

}  // namespace godwit::pod
