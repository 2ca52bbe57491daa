#pragma once

#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "migrate/freeze.hpp"
#include "objects/ahead.hpp"
#include "objects/kind.hpp"
#include "pod/pod.hpp"

namespace godwit::migrate {

/// Every open file description of a pod that is leaving, seen through duplicates of ours. They are held as short as can
/// be: while the pod runs, a duplicate keeps a closed socket or pipe from telling its other end.
class SourceDescriptors : public objects::Source {
 public:
  /// What stays the same for a whole migration.
  struct Pod {
    std::map<std::pair<dev_t, ino_t>, std::string> streams;  ///< the init's, by inode
    std::string upper, root;
  };
  static Result<Pod> look_at(pod::Pod&);

  /// Duplicates all descriptors of these processes and finds out which share a description. Which
  /// numbers are close-on-exec only the process itself can say: `Holder::close_on_exec` is left unset.
  static Result<SourceDescriptors> open(const Pod&, const std::vector<ProcessIds>& processes);

  /// Numbers in one process's table, ascending.
  [[nodiscard]] const std::vector<int>& numbers(PodPid process) const;

  /// Everything that would keep the descriptors from moving, each with process, number, object and reason.
  [[nodiscard]] std::vector<std::string> preflight();
  /// While the pod runs: gives `send` what of these processes' objects can be captured ahead, a part at a time.
  static Result<void> look_ahead(HostPid init, const std::vector<ProcessIds>& processes, objects::AheadSource&,
                                 const std::function<Result<void>(std::vector<objects::AheadImage>)>& send);
  /// What was captured ahead and is still there.
  Result<std::vector<objects::Kept>> keep(objects::AheadSource&);
  /// State of everything that isn't kept, empty where it is. `refused` names what can't move; `busy` says that another
  /// try may succeed. Both are the same for `keep`.
  Result<std::vector<objects::Image>> capture();

  [[nodiscard]] const std::vector<objects::Descriptor>& descriptors() const override { return descriptors_; }
  [[nodiscard]] std::optional<objects::ObjectId> find(PodPid process, int number) const override;
  [[nodiscard]] std::optional<std::string> stream(const struct stat&) const override;
  [[nodiscard]] const std::string& upper() const override { return pod_->upper; }
  [[nodiscard]] const std::string& root() const override { return pod_->root; }
  [[nodiscard]] std::optional<PodPid> pod_pid(HostPid) const override;
  [[nodiscard]] std::optional<HostPid> host_pid(PodPid) const override;

 private:
  explicit SourceDescriptors(const Pod& pod) : pod_(&pod) {}
  void group();
  [[nodiscard]] bool still_held(const objects::Descriptor&) const;

  const Pod* pod_;
  std::vector<ProcessIds> processes_;
  struct Entry {
    PodPid process;
    int number;
    Fd fd;
    struct stat status {};
    int flags = 0;
    objects::ObjectId id = 0;
  };
  static Result<void> duplicate(int pidfd, PodPid process, std::span<const int> numbers, std::vector<Entry>& into);
  std::vector<Entry> entries_;
  std::map<pid_t, std::vector<int>> numbers_;
  std::vector<objects::Descriptor> descriptors_;
  std::set<objects::ObjectId> kept_;
  std::map<std::pair<pid_t, int>, objects::ObjectId> by_number_;
};

}  // namespace godwit::migrate
