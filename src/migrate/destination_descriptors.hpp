#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "migrate/destination_memory.hpp"
#include "objects/ahead.hpp"
#include "objects/kind.hpp"
#include "pod/pod.hpp"

namespace godwit::migrate {

/// Every open file description of a pod that is arriving.
class DestinationDescriptors : public objects::Destination {
 public:
  DestinationDescriptors(pod::Pod& pod, std::optional<objects::Opener> opener)
      : pod_(pod), opener_(std::move(opener)) {}

  /// While the pod still runs at the source; on the pod's workshop.
  Result<void> build_ahead(std::vector<objects::AheadImage> images);
  /// Puts what was built ahead into the table of a process whose lowest number is `builder`. What becomes of it is seen
  /// when the process's descriptors are installed.
  Result<void> install_ahead(PodPid process, int builder, Hand hand);
  /// The process has ended, or begun anew with an empty table.
  void forget_installed(PodPid process) { installed_.erase(process.value); }
  /// Brings up to date what was built ahead; on the pod's workshop. `kept` must live until then.
  Result<void> finish_ahead(const std::vector<objects::Kept>& kept) { return ahead_.finish(kept, *this); }
  /// The processes have their final numbers.
  void know(std::map<pid_t, HostPid> processes) { processes_ = std::move(processes); }
  /// Builds all others; on the pod's workshop. Somebody must `serve` meanwhile.
  Result<void> build(std::vector<objects::Image> images, const std::vector<objects::Kept>& kept);
  /// On the thread that traces the processes: does what the build wants done by one of them. Returns when everything is
  /// built (true) or `until` is true (asked every now and then).
  bool serve(const std::function<bool()>& until, const std::function<std::optional<Hand>(PodPid)>& find);
  /// Nobody serves any more: what is asked for fails.
  void dismiss();
  /// Puts what `process` holds into its table, under the right numbers, and makes what belongs to the process.
  /// `builder` is the number of a pidfd of this daemon in that table; it stands above all others and is closed last.
  Result<void> install(PodPid process, int builder, kernel::Batch&, Hand);
  Result<void> attach(PodPid process, kernel::Batch&, Hand);
  /// Before `install`.
  void set_close_on_exec(PodPid process, const std::vector<int>& numbers);
  /// After the commit; on the pod's workshop.
  Result<void> open();
  /// The highest number that any process needs, or has in its table already.
  [[nodiscard]] int highest_number(const std::vector<objects::Image>&, const std::vector<objects::Kept>&) const;
  /// Our duplicates: closed once every process has its own.
  void let_go() { built_.clear(); }

  [[nodiscard]] int built(objects::ObjectId id) const override {
    return id < built_.size() && built_[id] ? built_[id].get() : -1;
  }
  [[nodiscard]] Result<Fd> stream(const std::string& name) override;
  [[nodiscard]] std::optional<HostPid> host_pid(PodPid) const override;
  [[nodiscard]] const objects::Opener* opener() const override { return opener_ ? &*opener_ : nullptr; }
  Result<void> as_process(PodPid process, const std::function<Result<void>(objects::Stub&)>& work) override;

 private:
  using Wanted = std::map<int, std::pair<const objects::Holder*, objects::ObjectId>>;  ///< by number
  Result<void> build_all(const std::vector<objects::Kept>& kept);
  Result<std::set<int>> settle_installed(PodPid process, Wanted& wanted, kernel::Batch&, Hand);
  pod::Pod& pod_;
  std::optional<objects::Opener> opener_;
  objects::AheadDestination ahead_;
  std::map<pid_t, std::map<int, std::uint32_t>> installed_;  ///< by process and number: keys of what was built ahead
  std::map<objects::ObjectId, std::uint32_t> kept_;          ///< keys of what was kept
  std::map<pid_t, HostPid> processes_;
  std::vector<objects::Image> images_;
  std::vector<Fd> built_;
  std::map<std::string, Fd> streams_;
  struct Request {
    PodPid process;
    const std::function<Result<void>(objects::Stub&)>& work;
    std::optional<Result<void>> outcome;
  };
  std::mutex mutex_;  ///< guards what follows
  std::condition_variable changed_;
  Request* request_ = nullptr;
  bool finished_ = false, dismissed_ = false;
};

}  // namespace godwit::migrate
