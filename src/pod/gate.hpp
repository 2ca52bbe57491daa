#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace godwit::pod {

/// The door between a pod's network and the node's bridge: two small BPF programs (TCX) on the node's end of the pod's
/// veth, steered by one map, so that opening and closing is one system call of about a microsecond and loses nothing.
///
///   open   frames pass.
///   hold   frames to the pod are put aside (redirected to a tap device of ours, each exactly once), frames from the
///   pod are dropped.
///          The state of a pod that is frozen, at the source; and of one that is arriving, at the destination.
///   shut   frames are dropped both ways. The state of a source that has given the pod away and of a pod being torn
///   down.
///
/// The programs hang on descriptors that this object holds (a copy may be kept by the pod's init): when the last holder
/// dies they are gone and the gate is open again, which is what a source needs whose daemon died before the commit.
class Gate {
 public:
  enum class State : std::uint32_t { open = 0, hold = 1, shut = 2 };

  /// Installs the programs on the device (the node's end), in `state` from the first instant. Runs in the node's
  /// network namespace.
  static Result<Gate> install(const std::string& node_device, State state);

  Result<void> set(State state);
  /// A frame put aside since the last call, with its virtio_net_hdr before it; empty when there is none. Never blocks.
  Result<Bytes> next_held();
  /// Readable when there is one: to be waited for.
  [[nodiscard]] int held_fd() const;
  /// Delivers a held frame (as `next_held` gave it) to the pod, past the programs: also while the state is `hold`.
  Result<void> deliver(BytesView frame);

  Gate(Gate&&) noexcept;
  Gate& operator=(Gate&&) noexcept;
  ~Gate();

 private:
  struct Parts;
  explicit Gate(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
