#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/bytes.hpp"

/// Named places at which a test makes something die, or lie. What acts on them is linked into the test daemon only
/// (test/faults); everywhere else reaching one is a call of an empty function.
namespace godwit::fault {

void reach(std::string_view point);

/// What one daemon writes to another.
enum class Flow : std::uint8_t {
  control,  ///< a message of migrate/channel, with its head
  records,  ///< what goes over the other connections of a migration: page records, questions for pages, single bytes
  frame     ///< a frame of node/io: the handshake's, the starters', the store's
};

/// Asked before anything of this kind is written to the socket: what is to be written instead. Nothing: the parts as
/// they are. An empty one: nothing at all.
std::optional<Bytes> altered(Flow, int socket, std::span<const iovec> parts);

}  // namespace godwit::fault
