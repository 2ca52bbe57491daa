#include "objects/injection.hpp"

#include <netinet/in.h>

#include <cstring>

namespace godwit::objects {
namespace {

struct Injectors {
  std::map<int, kernel::PacketInjector> families;
};

}  // namespace

SocketAddress on_wire(const SocketAddress& address) {
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
  if (address.storage.ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) return address;
  SocketAddress result;
  auto& v4 = reinterpret_cast<sockaddr_in&>(result.storage);
  v4.sin_family = AF_INET;
  v4.sin_port = v6.sin6_port;
  std::memcpy(&v4.sin_addr, &v6.sin6_addr.s6_addr[12], sizeof(v4.sin_addr));
  result.length = sizeof(v4);
  return result;
}

Result<kernel::PacketInjector*> packet_injector(Destination& destination, int family) {
  auto& families = destination.shared<Injectors>("packet injectors").families;
  const auto known = families.find(family);
  if (known != families.end()) return &known->second;
  return &families.emplace(family, TRY(kernel::PacketInjector::open(family))).first->second;
}

}  // namespace godwit::objects
