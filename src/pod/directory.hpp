#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "pod/cgroups.hpp"
#include "pod/spec.hpp"

/// A pod's directory on disk, state_dir/pods/NAME:
///   upper, work, merged   the layers of its root; `merged` is only a place to mount at
///   log                   its output, see log_segments.hpp
///   record                what a daemon needs to find the pod again
///   kept                  is there when the pod was this node's by right, not half-made
///   left                  is there when the pod has gone and its files were to stay; the pod's id
///   said-here, said-there  an operator has said whose a copy in doubt is, and the record doesn't say so yet
namespace godwit::pod {

struct Record {
  Spec spec;
  pid_t init = 0;
  std::uint64_t start_time = 0;  ///< of the init, as /proc/PID/stat says
  PodCgroups cgroups;
  MSGPACK_DEFINE_MAP(spec, init, start_time, cgroups)
};

class Directory {
 public:
  Directory(const std::string& state_dir, const std::string& run_dir, const std::string& name);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string upper() const { return path_ + "/upper"; }
  [[nodiscard]] std::string work() const { return path_ + "/work"; }
  [[nodiscard]] std::string merged() const { return path_ + "/merged"; }
  [[nodiscard]] std::string log() const { return path_ + "/log"; }
  [[nodiscard]] const std::string& socket() const { return socket_; }

  /// Makes it for a new pod. What stands there from an earlier one goes, but the log of the same pod that has been here
  /// before, and the files of one that died without us: those are moved to state_dir/lost. `busy` when a pod of that
  /// name lives here.
  Result<void> make(const Spec&);
  /// Atomically: there is a whole record or none.
  Result<void> write_record(const Record&) const;
  /// nullopt when there is none.
  [[nodiscard]] Result<std::optional<Record>> read_record() const;
  Result<void> mark_kept() const;
  /// The pod is about to be torn down: its files are nobody's any more, wherever that breaks off.
  Result<void> mark_forsaken() const;
  /// Ends what is left of a pod: its init when that still runs, cgroups, files (which are moved to state_dir/lost when
  /// the pod was kept).
  Result<void> clear() const;
  Result<void> remove() const;
  /// The upper layer and the log stay.
  Result<void> leave(const std::string& id) const;

  /// Whether the record's init is the process that has its pid now.
  [[nodiscard]] static bool alive(const Record&);
  /// Names of all that have a directory.
  static Result<std::vector<std::string>> all(const std::string& state_dir);

 private:
  std::string state_dir_;
  std::string name_;
  std::string path_;
  std::string socket_;
};

/// An operator's word in a pod's directory, that the pod is here or that it isn't: written down before it is obeyed,
/// and there until the record says the same, or the copy is no more. It outlives the daemon, not the machine, as pods
/// do.
Result<void> write_word(const std::string& directory, bool here);
std::optional<bool> read_word(const std::string& directory);
Result<void> forget_word(const std::string& directory);

/// `invalid` unless it is a valid_name: it becomes part of paths.
Result<void> check_name(const std::string& name);
/// mkdir -p.
Result<void> make_path(const std::string& path);

}  // namespace godwit::pod
