#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "migrate/destination_memory.hpp"
#include "objects/kind.hpp"
#include "pod/pod.hpp"

namespace godwit::migrate {

/// Every open file description of a pod that is arriving.
class DestinationDescriptors : public objects::Destination {
 public:
  DestinationDescriptors(pod::Pod& pod, std::map<pid_t, HostPid> processes)
      : pod_(pod), processes_(std::move(processes)) {}

  /// Builds all of them; on the pod's workshop. Somebody must `serve` meanwhile.
  Result<void> build(std::vector<objects::Image> images);
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
  /// The highest number that any process needs.
  [[nodiscard]] static int highest_number(const std::vector<objects::Image>&);
  /// Our duplicates: closed once every process has its own.
  void let_go() { built_.clear(); }

  [[nodiscard]] int built(objects::ObjectId id) const override {
    return id < built_.size() && built_[id] ? built_[id].get() : -1;
  }
  [[nodiscard]] Result<Fd> stream(const std::string& name) override;
  [[nodiscard]] std::optional<HostPid> host_pid(PodPid) const override;
  Result<void> as_process(PodPid process, const std::function<Result<void>(objects::Stub&)>& work) override;

 private:
  Result<void> build_all();
  pod::Pod& pod_;
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
