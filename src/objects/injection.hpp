#pragma once

#include "kernel/raw_packet.hpp"
#include "objects/socket_options.hpp"

namespace godwit::objects {

/// An IPv4 address that an IPv6 socket speaks of (::ffff:10.0.0.1) is IPv4 on the wire.
[[nodiscard]] SocketAddress on_wire(const SocketAddress&);

/// The injector of the pod's network namespace, opened at first use.
Result<kernel::PacketInjector*> packet_injector(Destination&, int family);

}  // namespace godwit::objects
