#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "kernel/priority.hpp"
#include "kernel/task_reader.hpp"
#include "migrate/channel.hpp"
#include "migrate/claim.hpp"
#include "migrate/freeze.hpp"
#include "migrate/migrate.hpp"
#include "migrate/page_stream.hpp"
#include "migrate/source_descriptors.hpp"
#include "migrate/source_memory.hpp"
#include "migrate/stopwatch.hpp"
#include "migrate/strategy.hpp"
#include "migrate/wire.hpp"
#include "objects/pod_clock.hpp"
#include "objects/process_state.hpp"
#include "objects/thread_state.hpp"
#include "pod/upper.hpp"

namespace godwit::migrate {

/// A process of the pod that is leaving.
struct Leaving {
  ProcessIds ids;
  std::optional<SourceMemory> memory;  ///< none for a zombie
  kernel::Gadget gadget;
  bool same_capabilities = false;  ///< all threads have the same bounding and ambient sets
  bool fresh = true;               ///< the destination must begin its address space anew
  bool asked_to_track = false;     ///< that was tried, whatever came of it
  bool announced = false;          ///< the destination has made it
  bool waits = false;              ///< isn't announced yet: what it shares with its parent has to be there before
  bool forks = false;              ///< is made in this round, from its parent's memory as it is there
};

/// One thread's capture, between being asked and being answered; kept for putting it back.
struct ThreadInHand {
  kernel::Tracee* tracee = nullptr;
  HostPid tid;
  pid_t process = 0;  ///< host pid of its process
  objects::ThreadCapture capture;
};

/// The source's side of one migration. `send` (send.cpp) calls the phases in order; what is true between them is said
/// there.
class Departure {
 public:
  Departure(pod::Pod& pod, const Options& options, const Connect& connect, const SourceSite& site, Report& report);
  ~Departure();

  Result<void> negotiate();
  Result<void> prepare();
  Result<void> copy_while_running();
  Result<void> freeze();
  Result<void> send_last_files();
  Result<void> send_last_pages();
  Result<void> finish_last_pages();
  Result<void> send_state();
  Result<void> send_objects();
  Result<void> pin();
  Result<void> commit();
  Result<void> hand_over();
  Result<void> release();
  /// Before the commit: everything here is as it was. Says why to the destination.
  void give_up(const Error& why);
  /// After it: nothing here runs again.
  void let_lie(const Error& why);

 private:
  /// For one step of the freeze, of a destination that is within reach: longer than a loaded machine takes, shorter
  /// than what most programs' peers bear.
  static constexpr std::chrono::seconds step_limit{15};

  Result<wire::Hello> introduce();
  std::vector<std::string> refusals();
  Result<void> expect_cost();
  Result<std::uint64_t> probe(std::size_t bytes);
  std::vector<std::string> refusals_now();
  /// The destination's next message, which is of this type. Up to the commit a cancellation ends the wait.
  Result<Message> expect(wire::Type type, std::chrono::milliseconds limit = std::chrono::seconds(30));
  Result<void> align_clocks();
  Result<void> check_cancelled();
  Result<void> follow_processes();
  Result<bool> track(Leaving&);
  Result<void> begin_round(std::uint32_t number);
  Result<Next> copy_round(std::uint32_t number, std::uint64_t resident, std::uint64_t& dirty_before,
                          std::uint64_t& in_vain);
  Result<void> end_round(std::uint32_t number, const Sent& sent, const Stopwatch& watch,
                         std::chrono::milliseconds limit = std::chrono::minutes(10));
  Leaving* leaving(PodPid pid);
  [[nodiscard]] bool any(bool Leaving::*property) const;
  [[nodiscard]] bool shares_with_parent(const Leaving& child, const Leaving& parent) const;
  void find_forks(bool may_wait);
  using Collect = std::function<Result<void>(Leaving&, std::vector<Piece>&)>;
  Result<std::uint64_t> collect(std::vector<Piece>& pieces, const Collect& collect_one);
  Result<void> collect_forking(Leaving& child, std::vector<Piece>& pieces, const Collect& collect_one);
  Result<void> collect_shared(Leaving&, std::vector<Piece>& pieces);
  Result<void> copy_shared();
  Result<void> send_ahead(const std::vector<Piece>& pieces);
  Result<std::vector<wire::Process>> describe_processes();
  Result<void> look_at_record();
  Result<void> freeze_once();
  void let_go();
  Result<void> match_frozen();
  Result<void> look_last();
  Result<std::vector<Piece>> collect_last(wire::Last& last);
  [[nodiscard]] bool shares_memory(const ProcessIds&) const;
  Result<wire::ProcessImage> capture_process(FrozenProcess&, Leaving&);
  std::vector<wire::ProcessAhead> tell_ahead(const Known&);
  std::map<pid_t, kernel::TaskFacts> read_tasks(const std::vector<HostPid>&);
  Result<void> forward_frames(std::chrono::milliseconds quiet, std::chrono::milliseconds most);
  Result<void> send_logs();
  [[nodiscard]] bool owes() const { return !owed_.empty() || !owed_unseen_.empty(); }
  void begin_answering();
  void end_answering();
  Result<Round> push();
  void begin_pushing();
  Result<void> finish_serving();
  std::size_t read(SpaceId space, std::span<const Range> ranges, std::uint8_t* to);
  Result<void> send_objects_ahead();
  Result<void> send_files();
  Result<std::vector<pod::ManifestEntry>> used_files();
  void raise_priorities(const Known&);
  void let_down();
  void be_patient(std::chrono::seconds bound);
  void tell(std::string phase);

  pod::Pod& pod_;
  Options options_;
  const Connect& connect_;
  const SourceSite& site_;
  Report& report_;
  Strategy strategy_ = Strategy::automatic;
  Next ending_ = Next::freeze;
  bool committing_ = false;  ///< or done: nobody can take it back any more
  bool by_word_ = false;     ///< what became of the commit was said by an operator, not by the store
  bool tracking_ = false;    ///< write-protection tells what is written before the freeze
  objects::PodClock clock_;
  store::Record record_;
  std::unique_ptr<Channel> control_;
  std::unique_ptr<PageSender> pages_;
  Stream reference_;  ///< pages that the destination asks for
  SourceDescriptors::Pod facts_;
  std::map<pid_t, Leaving> processes_;  ///< by host pid
  std::vector<pid_t> order_;            ///< parents before children
  SourceObjects objects_;
  std::uint32_t round_ = 0;
  PodPid first_;                              ///< whose end is the pod's end
  std::vector<pod::Execution> executions_;    ///< what runs beside it
  PodPid last_pid_;                           ///< the last number given out in the pod
  std::vector<pod::UpperSource> trees_;       ///< in the order of wire::trees
  std::vector<pod::ManifestEntry> manifest_;  ///< files of the node's root that the pod used at preflight
  std::map<pid_t, objects::SleepMark> marks_;
  std::map<pid_t, objects::Scheduling> scheduling_;         ///< before priorities were raised
  std::map<pid_t, std::uint64_t> slack_;                    ///< timer slack, which raising takes away
  std::vector<kernel::RaisedPriority> raised_;              ///< ours and the init's, for the freeze only
  std::map<pid_t, kernel::RaisedPriority> raised_threads_;  ///< of the pod, from when they are asked to stop
  std::vector<FrozenProcess> frozen_;
  std::optional<kernel::TaskReader> tasks_;        ///< none where the kernel can't be read
  std::map<pid_t, kernel::TaskFacts> facts_of_;    ///< of the stopped threads
  std::map<pid_t, objects::ThreadSettings> told_;  ///< before the freeze
  std::vector<ThreadInHand> in_hand_;
  std::optional<SourceDescriptors> descriptors_;
  objects::AheadSource ahead_;
  std::vector<objects::Image> images_;
  std::vector<Piece> owed_;
  std::vector<Piece> owed_unseen_;               ///< owed as a whole, whatever is there of it
  std::map<std::string, std::uint64_t> logged_;  ///< bytes sent of the log's segments
  Stopwatch total_, freeze_watch_;
  std::int64_t stopped_at_ = 0;
  std::int64_t clock_difference_ = 0;  ///< destination's CLOCK_MONOTONIC minus ours, at least
  Result<Round> last_sent_;            ///< the pages of the freeze
  Result<Round> pushed_;
  std::jthread answering_;  ///< serves pages that are asked for, from the last scan on: rebuilding may need some
  std::jthread sending_;    ///< the pages of the freeze, beside what is still to be captured
  std::jthread pushing_;    ///< sends all that is owed, after the commit
  bool holding_ = false, pinned_ = false;
};

}  // namespace godwit::migrate
