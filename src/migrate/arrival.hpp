#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <shared_mutex>
#include <vector>

#include "kernel/priority.hpp"
#include "migrate/channel.hpp"
#include "migrate/destination_descriptors.hpp"
#include "migrate/destination_memory.hpp"
#include "migrate/migrate.hpp"
#include "migrate/page_stream.hpp"
#include "migrate/pager.hpp"
#include "migrate/stopwatch.hpp"
#include "migrate/wire.hpp"
#include "objects/memory_object.hpp"
#include "objects/pod_clock.hpp"
#include "objects/process_state.hpp"
#include "objects/thread_state.hpp"
#include "pod/upper.hpp"
#include "pod/workshop.hpp"

namespace godwit::migrate {

/// A thread that will be one of the pod's: stopped, standing in the gadget.
struct ArrivingThread {
  PodPid pod;
  kernel::Tracee tracee;
  std::uint64_t timer_slack = 0;                ///< ns, before it was raised; what it has again when it is let down
  bool raised = false;                          ///< to SCHED_FIFO, for the freeze
  std::optional<objects::ThreadSettings> told;  ///< what has been applied before the freeze
  bool parked = false;                          ///< where a call begins (objects::park)
};

/// A process of the pod that is arriving.
struct Arriving {
  wire::Process wanted;
  HostPid host;
  kernel::Gadget gadget;
  std::vector<ArrivingThread> threads;  ///< the first is the one it was made with
  std::unique_ptr<DestinationMemory> memory;
  bool session_made = false;
  bool ended = false;  ///< a zombie, made and dead
  [[nodiscard]] Hand hand() { return {threads.front().tracee, gadget}; }
};

/// The destination's side of one migration. `receive` (receive.cpp) calls the phases in order.
class Arrival {
 public:
  Arrival(Stream control, const Accept& accept, const DestinationSite& site);
  ~Arrival();

  Result<bool> negotiate();  ///< false: a dry run, which ends here
  Result<void> prepare();
  Result<void> follow_until_last();
  Result<void> rebuild();
  Result<void> pin();
  Result<void> await_commit();
  Result<void> restart();
  Result<void> settle();
  void give_up(const Error& why);
  [[nodiscard]] Report& report() { return report_; }
  /// Whether it is ours couldn't be told, and isn't for us to tell any more.
  [[nodiscard]] bool undecided() const { return undecided_; }

 private:
  std::vector<std::string> refusals(const wire::Hello&);
  Result<Message> next(std::chrono::milliseconds limit = std::chrono::minutes(30));
  Result<void> answer_clock();
  Result<void> open_trees();
  Result<void> expect_freeze(const wire::Freezing&);
  Result<void> raise_ourselves(const wire::Freezing&);
  Result<void> tell_ahead(const wire::ProcessAhead&);
  void raise_threads();
  Result<void> apply_round(const wire::Round&);
  Result<void> end_process(Arriving&);
  Result<void> make_process(const wire::Process&);
  Result<void> make_from_init(const wire::Process&, Arriving&);
  Result<void> make_from(Arriving& parent, const wire::Process&, Arriving&, bool sibling);
  Result<void> make_session(Arriving&);
  Result<void> make_groups();
  void end_threads(Arriving&);
  Result<void> make_threads(Arriving&);
  Result<void> make_zombie(const wire::Process&, Arriving&);
  Result<void> check_known(const std::vector<wire::Ranges>&);
  Result<void> apply_last(const wire::Last&);
  Result<void> begin_references(const wire::Last&);
  Result<void> rebuild_all();
  Result<void> end_rebuilding();
  bool starve(const Error& why);
  Result<void> take_ahead(std::vector<objects::AheadImage>);
  Result<void> take_kept(std::vector<objects::Kept>);
  Result<void> install_ahead();
  Result<void> begin_descriptors();
  void serve(const std::function<bool()>& until);
  Result<void> match_said();
  [[nodiscard]] Result<void> check_complete() const;
  [[nodiscard]] Result<void> check_places() const;
  [[nodiscard]] Result<void> check_paths(const std::set<std::string>& paths, int flags) const;
  [[nodiscard]] Result<void> check_rights(PodPid thread, const objects::ThreadSettings&) const;
  Result<void> restore_process(const wire::ProcessImage&, int builder);
  Result<void> restore_threads(const wire::ProcessImage&, Arriving&, objects::ProcessRestore&, kernel::Batch);
  Result<void> write(SpaceId space, std::uint64_t address, const void* data, std::size_t size);
  Result<void> write_log(const Message&);
  Result<void> await_streams();
  Result<void> drain();
  Result<void> follow_to_the_end();
  Arriving* find(PodPid pid);

  Channel control_;
  const Accept& accept_;
  const DestinationSite& site_;
  Report report_;
  wire::Hello hello_;
  wire::Prepare prepare_;
  std::shared_ptr<pod::Pod> pod_;
  std::unique_ptr<pod::Workshop> workshop_;
  std::optional<objects::Opener> opener_;  ///< whose permissions count; none: root's
  objects::PodClock clock_;
  std::mutex rebuilding_mutex_;  ///< guards the two below: the pager's thread looks at them
  bool rebuilding_ = false;      ///< steps are done in the processes that may need an owed page
  std::optional<Error> starved_;
  std::shared_mutex spaces_mutex_;  ///< guards the maps below, and the pager, against the page connections' threads
  bool complete_ = false;           ///< all rounds are there: what comes from here on is owed, and the pager's
  std::map<pid_t, Arriving> processes_;
  std::vector<PodPid> order_;  ///< parents before children
  DestinationObjects objects_;
  std::vector<Stream> connections_;
  std::vector<pod::UpperTarget> trees_;         ///< in the order of wire::trees
  std::vector<kernel::RaisedPriority> raised_;  ///< ours and the init's, for the freeze only
  std::vector<kernel::RaisedPriority>
      raised_receivers_;  ///< until the last pages are there: a push must not keep others off the processors
  Stream reference_;
  std::unique_ptr<Pager> pager_;
  RemoteAddress gadget_place_ = 0;
  static constexpr int builder_ = 0;               ///< number of our pidfd in every stub
  std::map<pid_t, objects::ThreadSettings> said_;  ///< before the freeze
  std::atomic<std::uint64_t> received_ = 0;        ///< bytes of memory
  wire::Last last_;
  wire::State state_;
  std::vector<objects::Image> images_;
  std::vector<objects::Kept> kept_;
  int highest_number_ = 2;  ///< of any descriptor
  std::unique_ptr<DestinationDescriptors> descriptors_;
  objects::MemoryObjects* shared_objects_ = nullptr;  ///< what of memory descriptors are made of
  struct Restored {
    objects::ThreadRestore restore;
    HostPid tid;
  };
  std::vector<Restored> restores_;
  Stopwatch watch_;
  bool undecided_ = false;
  std::vector<Bytes> held_;
  std::map<pid_t, pid_t>
      temporaries_;  ///< leaders of sessions and groups that have ended at the source: pod pid to host pid
  /// Last, so that it goes first: until then its threads put what comes into the memory and the pager above.
  std::unique_ptr<PageReceiver> pages_;
};

}  // namespace godwit::migrate
