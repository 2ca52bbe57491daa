#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "control/machine.hpp"
#include "image/codec.hpp"

/// Pure decisions: state and event in, actions out. Nothing here reads a clock, opens a socket or takes a lock, so that
/// a simulated cluster can run the very same code.
namespace godwit::control {

/// On a clock that never goes back; where it begins doesn't matter. A node only compares times of its own.
using Time = std::chrono::milliseconds;

/// What a pod takes of the node that it runs on.
struct Needs {
  std::uint64_t memory = 0;            ///< bytes that will be resident
  double processors = 0;               ///< the pod's limit; 0: none, it takes what is there
  std::uint64_t descriptors = 0;       ///< in the tables of all its processes
  std::vector<std::string> labels;     ///< of the node: "secure" (whatever its value), "zone=x"
  std::vector<std::string> addresses;  ///< CIDR; come along
  std::string home;                    ///< node where it was created
  std::uint32_t user = 0;              ///< as whom it runs
  std::uint64_t capabilities = 0;      ///< that its processes may have, by number
  Machine machine;                     ///< that it runs on: its programs may have come to rely on all of it
  MSGPACK_DEFINE_MAP(memory, processors, descriptors, labels, addresses, home, user, capabilities, machine)
};

using Labels = std::map<std::string, std::string>;

/// Those of `wanted` that the labels don't satisfy.
std::vector<std::string> missing_labels(const Labels& labels, const std::vector<std::string>& wanted);

/// Why a node says no. Travels as its name: see `to_string`.
enum class Reason : std::uint8_t {
  none,
  memory,       ///< too little that nobody else has been promised
  processors,   ///< fewer than the pod may use
  descriptors,  ///< the daemon couldn't hold so many
  address,      ///< is somebody else's here, or doesn't belong to this node's network
  machine,      ///< processor features or the kernel; named in the text
  label,        ///< the pod needs one that the node hasn't
  quota,        ///< as many pods as the node's owner allows
  draining,     ///< the node is being emptied
  owner,        ///< the node's owner wants no guests now
  busy,         ///< for the moment: worth asking again
  cancelled,    ///< by who asked for the move
  late,         ///< the time for it is over
  unreachable,  ///< gave no answer
  hello,        ///< said yes, and no when the migration said Hello: to what only shows then, as files that differ
  protocol,     ///< an answer that makes no sense
};
std::string_view to_string(Reason);
/// `Reason::protocol` for what is no name of a reason.
Reason reason_named(std::string_view);

struct Refusal {
  Reason reason = Reason::none;
  std::string text;  ///< for people; says with figures what is lacking
  bool operator==(const Refusal&) const = default;
};

}  // namespace godwit::control
