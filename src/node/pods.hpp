#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "migrate/pager.hpp"
#include "migrate/recover.hpp"
#include "node/attendance.hpp"
#include "node/config.hpp"
#include "node/doubts.hpp"
#include "node/io.hpp"
#include "node/links.hpp"
#include "node/remainders.hpp"
#include "node/repetition.hpp"
#include "pod/network.hpp"
#include "pod/pod.hpp"
#include "store/store.hpp"

namespace godwit::node {

enum class PodState {
  running,
  leaving,   ///< in the hands of a migration; what needs the pod waits for it
  in_doubt,  ///< frozen by a migration, and the store can't be asked whose it is
  exited,    ///< its program has ended; exit status and log are kept until it is removed
};
const char* to_string(PodState);

class Journal;
struct Interrupted;

/// One pod on this node. The table and whoever works on the pod share it; `here` tells whether it is still this node's.
class LocalPod {
 public:
  explicit LocalPod(pod::Spec spec, std::string directory);
  ~LocalPod();

  const pod::Spec spec;
  const std::string directory;      ///< state_dir/pods/NAME
  const std::string log_directory;  ///< of segments, see pod/log_segments.hpp
  Attendance executions;

  struct View {
    PodState state = PodState::running;
    bool here = true;                ///< false: moved away or removed
    bool settling = false;           ///< arrived, but the source still owes something: it can't move on yet
    std::optional<int> status;       ///< wait status of the first program
    std::string destination;         ///< leaving: where to
    std::string note;                ///< why it is as it is, where that isn't plain
    std::vector<HostPid> processes;  ///< filled by `inspect` only
  };
  [[nodiscard]] View view() const;
  /// Waits until `wanted` holds of the view. `timeout` when it doesn't by then.
  Result<View> wait(const std::function<bool(const View&)>& wanted, Deadline) const;

  /// Runs `work` with the pod, alone. Waits for a migration to end first, as long as `patience` lasts: `gone` when the
  /// pod left with it, `timeout` when it still runs; `not_found` when the program has ended.
  Result<void> with(const std::function<Result<void>(pod::Pod&)>& work,
                    std::chrono::seconds patience = std::chrono::seconds(60));

  /// Writes what fits of `bytes` to the program's end of a stream (non-blocking), 0 when nothing does. Not while a
  /// migration has the pod frozen: what came then would be lost. `gone` when the pod has left this node, `cancelled`
  /// when `stop` was set while waiting.
  Result<std::size_t> put_input(int stream, BytesView bytes, const std::atomic<bool>& stop) const;

  /// An eventfd that becomes readable whenever the view changes.
  class Watch {
   public:
    explicit Watch(const LocalPod&);
    ~Watch();
    [[nodiscard]] int fd() const { return fd_.get(); }
    void clear() const;

   private:
    const LocalPod& pod_;
    Fd fd_;
  };

 private:
  friend class Pods;
  void change(const std::function<void(View&)>& edit);

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::set<int> watches_;
  View view_;
  Fd first_;                       ///< leaving, and not frozen yet: pidfd of the first program, for signals
  bool frozen_ = false;            ///< leaving, and whatever comes from outside has to wait
  std::mutex use_;                 ///< held while somebody works on the pod; taken before mutex_
  std::shared_ptr<pod::Pod> pod_;  ///< null once its program has ended; only touched with `use_`
  bool unclaimed_ = false;     ///< here by an operator's word; the record has yet to be told. Only touched with `use_`
  Repetition announce_again_;  ///< where it is. Only touched with `use_`
  std::unique_ptr<Interrupted> interrupted_;  ///< taken over in doubt; only touched with `use_`
};

/// What `run` asks for.
struct NewPod {
  std::string name;  ///< empty: one is made up
  std::string hostname;
  pod::Program program;
  std::uint64_t memory_limit = 0;
  double cpu_limit = 0;
  std::vector<std::string> labels;  ///< that a node must have
  pod::User user;
  std::uint64_t capabilities = 0;
};

/// The pods of this node. Thread-safe.
class Pods {
 public:
  Pods(const Links&, pod::Site, store::Store&, Doubts&, Remainders&, Journal&);
  ~Pods();

  /// Takes back what an earlier daemon left. A pod whose record names another owner is destroyed: it runs there. One
  /// that was frozen by an interrupted migration and is still ours is thawed; in doubt (store unreachable) it stays
  /// frozen, and is asked about again until the store answers.
  Result<void> adopt();

  Result<std::shared_ptr<LocalPod>> create(NewPod);
  [[nodiscard]] std::shared_ptr<LocalPod> find(const std::string& name) const;
  [[nodiscard]] std::vector<std::shared_ptr<LocalPod>> list() const;

  /// The pod may be here any moment: it is being made, or some pod is arriving, or not all have been taken over yet.
  [[nodiscard]] bool expected(const std::string& name) const;
  /// Counts migrations to this node that are under way (+1, -1).
  void expect_arrival(int change);

  /// SIGTERM to the first program, and after `grace` SIGKILL to all. Returns when it has ended.
  Result<void> stop(LocalPod&, std::chrono::milliseconds grace);
  /// To the first program. During a migration up to its freeze; from there on it waits for how that ends.
  Result<void> signal(LocalPod&, int signal);
  /// Forgets an ended pod: log, files, name, address. `force` stops a running one first.
  Result<void> remove(const std::shared_ptr<LocalPod>&, bool force);
  /// Removes the record of a pod that should be here and isn't (the machine was restarted, say). `busy` when it is and
  /// couldn't be taken over.
  Result<void> remove_lost(const store::Record&);

  /// Hands the pod to a migration: nobody else touches it until `take_back` or `departed`. One that has just arrived is
  /// waited for until it has settled. `busy` (also as long as its record has to be told that it is here), `refused`,
  /// `gone`.
  Result<std::shared_ptr<pod::Pod>> lend(LocalPod&, const std::string& destination);
  /// The migration is about to freeze the pod: what it gets from outside now would be lost. When this returns, what it
  /// got before is there. One lock.
  void freezing(LocalPod&);
  /// The migration came to nothing, the pod is ours and runs on.
  void take_back(LocalPod&);
  /// The pod is another node's now: this node's table forgets it.
  void departed(LocalPod&);
  /// The same, and destroys what is left of it here.
  void abandon(LocalPod&);
  /// The migration can't tell what it has come to until the store answers: frozen until then.
  void in_doubt(LocalPod&, const std::string& note);
  /// A pod has arrived and is ours; it settles until the migration that brought it is over.
  std::shared_ptr<LocalPod> arrived(std::shared_ptr<pod::Pod>);
  void settled(LocalPod&);
  /// Whence a pod that has come by `move` gets what it is still owed.
  migrate::Pager::Source source(const std::string& peer, const std::string& move, const std::string& pod);
  /// This daemon ends: what is still owed is the next one's.
  void leave_off() { left_off_ = true; }
  [[nodiscard]] bool leaving_off() const { return left_off_; }
  /// What it is owed is lost: it ends here, and the reason stays with it.
  void lose(LocalPod&, const std::string& why);

 private:
  static std::shared_ptr<LocalPod> local_of(std::shared_ptr<pod::Pod>, PodState);
  void insert(const std::shared_ptr<LocalPod>&);
  Result<pod::Spec> reserve(const NewPod&);
  Result<std::shared_ptr<LocalPod>> make(const NewPod&);
  void adopt_one(std::unique_ptr<pod::Pod>);
  void adopt_ended(const std::string& directory);
  void settle(const std::shared_ptr<LocalPod>&);
  std::optional<control::Fate> fate_of(LocalPod&);
  void go_on(const std::shared_ptr<LocalPod>&, const std::optional<migrate::Journal>&);
  void note_interrupted(const LocalPod&, const migrate::Journal&, control::Fate);
  void claim(LocalPod&);
  void fetch_rest(const std::shared_ptr<LocalPod>&, std::unique_ptr<migrate::Pager>, const migrate::Journal&);
  void watch();
  void collect_end(const std::shared_ptr<LocalPod>&);
  static void end_forsaken(LocalPod&);
  void ended(const std::shared_ptr<LocalPod>&, int status);
  void wake();

  const Links& links_;
  const Config& config_;
  const pod::Site site_;
  store::Store& store_;
  Doubts& doubts_;
  Remainders& remainders_;
  Journal& history_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<LocalPod>> pods_;
  std::multiset<std::string> being_made_;
  int arriving_ = 0;
  std::atomic<bool> adopted_ = false, ending_ = false, left_off_ = false;
  std::list<std::thread> fetching_;  ///< added to with `mutex_`
  Fd wake_;
  std::thread watcher_;
};

/// 0–255 as a shell gives it: the program's own, or 128 + the signal that ended it.
int exit_code(int wait_status);

}  // namespace godwit::node
