#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "pod/user.hpp"

/// A pod's upper layer, from one node to another: everything the pod has written, with owners, times, extended
/// attributes, whiteouts, hard links and holes. It travels in passes, most of them while the pod runs: each sends what
/// is not yet as it is now. The last, in the freeze, finds little: a layer in which nothing changed costs a readdir and
/// a stat per file.
namespace godwit::pod {

/// Takes one message of at most `largest_upper_message` bytes. Messages are applied in the order in which they were
/// sent.
using UpperSink = std::function<Result<void>(BytesView)>;

inline constexpr std::size_t largest_upper_message = 1 * MiB;

/// What one pass found and sent.
struct UpperPass {
  std::uint64_t entries = 0;  ///< files, directories and all else in the layer
  std::uint64_t changed = 0;  ///< of them sent, wholly or in part
  std::uint64_t removed = 0;
  std::uint64_t data_bytes = 0;
  std::uint64_t sent_bytes = 0;
  std::chrono::microseconds took{};
};

/// The layer that leaves. Remembers what was sent: a hash per block of 64 KiB, so that a large file of which a little
/// changed isn't sent again.
class UpperSource {
 public:
  static Result<UpperSource> open(const std::string& directory);

  /// Sends what changed since the pass before (all, at first). `refused` when the layer has more than can be kept in
  /// mind, or a path that no system call takes. `suspects` are paths relative to the layer ("var/db")
  /// whose content may have changed without a trace in their times: files that are mapped shared and writable. They are
  /// read and compared in any case.
  Result<UpperPass> pass(const UpperSink&, const std::set<std::string>& suspects = {});

  UpperSource(UpperSource&&) noexcept;
  UpperSource& operator=(UpperSource&&) noexcept;
  ~UpperSource();

 private:
  struct Parts;
  explicit UpperSource(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

/// What an arriving pod may do by itself in the root that it is given. Whoever sends its files gets no more.
struct UpperRights {
  User user;
  std::uint64_t capabilities = ~std::uint64_t{0};  ///< root's alone: another user's count for nothing
  /// A directory of the root that the pod doesn't see ("/var/lib/godwit", without symbolic links); may be empty.
  /// Means nothing for a layer.
  std::string hidden;
};

/// The layer that arrives. Takes nothing on trust: no name leads out of the directory, no symbolic link is followed.
///
/// In an overlay, names lead to what the node's own root has as well, and to change that is to copy it up: a file that
/// nobody may read would be the pod's by a change of its owner. So only what this arrival has made with content of its
/// own is changed, sealed or linked to (an honest source never asks for more: what its pod has changed is in its upper
/// layer, and comes whole); anything else is `refused`. What the root has can be replaced. Its directories stay, and
/// get the owner, mode and attributes that are sent if the pod could give them those itself. If not they keep theirs:
/// nodes may differ in them.
class UpperTarget {
 public:
  enum class Kind {
    layer,  ///< the directory is the upper layer itself, and no overlay that uses it is mounted
    /// The directory is the root of the mounted overlay (without what is mounted on it: see open_tree(2) without
    /// AT_RECURSIVE). An overlay doesn't see changes that are made to its layers behind its back.
    overlay,
  };
  static Result<UpperTarget> open(const std::string& directory, Kind kind = Kind::layer);
  /// The same with a directory that is open already (O_PATH will do).
  static Result<UpperTarget> open(int directory, Kind kind, UpperRights rights = {});

  /// `invalid` when the message is malformed or wants something outside of the layer, `refused` when the pod has no
  /// right to it.
  Result<void> apply(BytesView message);

  UpperTarget(UpperTarget&&) noexcept;
  UpperTarget& operator=(UpperTarget&&) noexcept;
  ~UpperTarget();

 private:
  struct Parts;
  explicit UpperTarget(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
