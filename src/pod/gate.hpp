#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace godwit::pod {

/// The door between a pod's network and the node's bridge: two small BPF programs (TCX) on the node's end of the pod's
/// veth, steered by one map, so that opening and closing is one system call of about a microsecond and loses nothing.
///
///            to the pod   from it
///   open     pass         pass
///   pause    put aside    pass
///   hold     put aside    drop
///   shut     drop         drop
///
/// "Put aside" is redirected to a tap device of ours, each frame exactly once and in order, segmentation offload and
/// partial checksums kept.
///
/// At the source: `pause` just before the threads are stopped, so that what they and the kernel still answer goes out;
/// `hold` when they have stopped and before the first socket is captured: from there nothing may be acknowledged that
/// the image doesn't have. `hold` stays after the commit for as long as late frames are passed on; then `shut`.
/// At the destination: `shut` until the commit (frames that a switch floods to both nodes are held by the source
/// alone, so none arrives twice); then `pause`, announce, deliver what the source has held, and release().
///
/// The programs hang on descriptors that this object holds: when the last holder dies they are gone and the gate is
/// open again, which is what a source needs whose daemon died before the commit. What must outlive the daemon (a
/// source that is shut) is left with the pod's init as descriptors().
class Gate {
 public:
  enum class State : std::uint32_t { open = 0, hold = 1, shut = 2, pause = 3 };

  /// Installs the programs on the device (the node's end), in `state` from the first instant. Runs in the node's
  /// network namespace.
  static Result<Gate> install(const std::string& node_device, State state);
  /// The gate that another process has left, from duplicates of all its descriptors() by the same names. The state is
  /// what it was.
  static Result<Gate> from(const std::string& node_device, std::map<std::string, Fd> descriptors);
  /// Whether these are all of a gate's.
  [[nodiscard]] static bool is_whole(const std::map<std::string, Fd>& descriptors);
  /// What keeps the gate alive, by name. Valid as long as this object.
  [[nodiscard]] std::map<std::string, int> descriptors() const;

  Result<void> set(State state);
  [[nodiscard]] Result<State> state() const;
  /// A frame put aside since the last call, with its virtio_net_hdr (10 bytes) before it; empty when there is none.
  /// Never blocks.
  Result<Bytes> next_held();
  /// Readable when there is one: to be waited for.
  [[nodiscard]] int held_fd() const;
  /// Delivers a held frame (as `next_held` of this or of another gate gave it) to the pod, past the programs, whatever
  /// the state. `invalid` when it is no frame.
  Result<void> deliver(BytesView frame);
  /// Delivers all that is held, opens, and delivers what came in between. Returns how many frames.
  Result<std::size_t> release();

  /// Whether a held frame is for a group (broadcast, multicast). Frames for a group reach every node by themselves:
  /// what a source holds of them after the destination has opened must not be passed on.
  [[nodiscard]] static bool for_a_group(BytesView frame);

  Gate(Gate&&) noexcept;
  Gate& operator=(Gate&&) noexcept;
  ~Gate();

 private:
  struct Parts;
  explicit Gate(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
