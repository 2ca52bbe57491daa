#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "control/machine.hpp"
#include "image/codec.hpp"
#include "migrate/layout.hpp"
#include "migrate/page_set.hpp"
#include "migrate/report.hpp"
#include "objects/ahead.hpp"
#include "objects/kind.hpp"
#include "objects/process_state.hpp"
#include "objects/thread_state.hpp"
#include "pod/execution.hpp"
#include "pod/manifest.hpp"
#include "pod/spec.hpp"
#include "store/store.hpp"

/// What travels on a migration's control connection.
///
///   source                                      destination
///     Hello  ------------------------------------>          who, what it uses, how much
///            <------------------------------------ Welcome  or Refused, with every reason
///     Clock  ------------------------------------>          a few times: how the two clocks stand to each other
///            <------------------------------------ Clock
///     Prepare ----------------------------------->          the pod's namespaces, root and network port are made; its
///     gate holds
///            <------------------------------------ Ready
///     Files … ----------------------------------->          the upper layer, while the pod runs
///     Round  ------------------------------------>          processes and their layouts now; stubs follow suit
///            <------------------------------------ Ready
///     (pages on their own connections)
///            <------------------------------------ Done     every page of the round is in place
///     ObjectsAhead … --------------------------->          what can be captured and built while the pod runs
///     Freezing -------------------------------->          what needn't wait for the freeze is done before it
///            <------------------------------------ Ready
///     … freeze …
///     Files … ----------------------------------->          what changed
///     ObjectsKept ------------------------------->          what has changed in those that were sent ahead
///     Objects ----------------------------------->          all other descriptors
///     Last   ------------------------------------>          layouts, last pages, what is owed
///     State  ------------------------------------>          processes and threads
///     Log … Execution … StreamsEnd -------------->          the end of the output written here; what is older came
///     with the files. What programs beside the first have written that nobody has read yet
///            <------------------------------------ Rebuilt  complete, pinned by the freezer, silent
///     … commit: the store says the destination owns it …
///     Go     ------------------------------------>          with the frames held so far, and by whose word
///            <------------------------------------ Running
///     Frames … ---------------------------------->          what still comes to the old place
///            <------------------------------------ Drained  nothing is owed any more
///     Bye    ------------------------------------>
///
/// Either side may say Abort with a reason up to the commit.
///
/// The other connections are made after Welcome. They may be handed over in another order than they were made: the
/// first byte of each says what it is, its number among the page connections, or their count for the one on reference.
namespace godwit::migrate::wire {

inline constexpr std::uint32_t protocol = 9;

enum class Type : std::uint8_t {
  hello = 1,
  welcome,
  refused,
  clock,
  prepare,
  ready,
  files,
  round,
  done,
  last,
  state,
  objects,
  rebuilt,
  go,
  running,
  frames,
  log,
  drained,
  bye,
  abort,
  freezing,
  streams_end,
  probe,  ///< of a dry run: answered by another without content
  objects_ahead,
  objects_kept,
  execution
};

struct Hello {
  std::uint32_t version = protocol;
  std::string from;
  pod::Spec spec;
  control::Machine machine;               ///< that it runs on
  std::uint64_t resident = 0;             ///< bytes that will live there
  std::uint64_t descriptors = 0;          ///< in the tables of all its processes
  std::vector<pod::ManifestEntry> files;  ///< of the node's own root that the pod uses
  std::string strategy;
  bool dry_run = false;
  std::uint32_t connections = 1;  ///< for pages; one more is for pages fetched on reference
  MSGPACK_DEFINE_MAP(version, from, spec, machine, resident, descriptors, files, strategy, dry_run, connections)
};

struct Refused {
  std::vector<std::string> reasons;
  MSGPACK_DEFINE_MAP(reasons)
};

/// The receiver's clocks, or (in Prepare) the pod's clocks at one instant of the receiver's.
struct Clock {
  std::int64_t monotonic = 0, boottime = 0;
  MSGPACK_DEFINE_MAP(monotonic, boottime)
};

struct Prepare {
  pod::Clocks clocks;                      ///< the pod's, at `at`
  std::int64_t at = 0;                     ///< the destination's CLOCK_MONOTONIC
  store::Record record;                    ///< as the commit will expect it
  std::vector<pod::Execution> executions;  ///< without their output: they have streams
  MSGPACK_DEFINE_MAP(clocks, at, record, executions)
};

/// One process as the destination has to make it.
struct Process {
  PodPid pid, parent, group, session;
  int exit_signal = 0;
  bool zombie = false;
  int exit_code = 0;
  std::string name;
  bool shares_files = false, shares_filesystem = false;  ///< with its parent
  PodPid forked_from;  ///< its parent, if they share pages copy-on-write: forked from it as it is at this point. Else 0
  std::vector<PodPid> threads;  ///< leader first, unless it has exited
  bool leader_exited = false;
  bool fresh = false;      ///< its address space is not the one of the round before (exec): begin with nothing
  bool unchanged = false;  ///< its layout is the round before's, and isn't said again
  Layout layout;
  MSGPACK_DEFINE_MAP(pid, parent, group, session, exit_signal, zombie, exit_code, name, shares_files, shares_filesystem,
                     forked_from, threads, leader_exited, fresh, unchanged, layout)
};

struct Round {
  std::uint32_t number = 0;
  std::vector<Process> processes;  ///< parents before children
  std::vector<ObjectInfo> objects;
  MSGPACK_DEFINE_MAP(number, processes, objects)
};

/// Ranges of one process's memory.
struct Ranges {
  PodPid process;
  std::vector<std::uint64_t> edges;  ///< begin, end, begin, end …
  MSGPACK_DEFINE_MAP(process, edges)
};

struct Last {
  Round round;                 ///< the final layouts; its pages may follow on the page connections
  std::vector<Ranges> absent;  ///< sent before, dropped by the program since
  std::vector<Ranges> owed;    ///< to be fetched on reference
  Bytes pages;                 ///< few pages travel right here
  bool more_pages = false;     ///< others on the page connections, as round `round.number`
  MSGPACK_DEFINE_MAP(round, absent, owed, pages, more_pages)
};

struct ProcessImage {
  objects::ProcessState process;
  std::vector<objects::ThreadState> threads;
  std::vector<int> close_on_exec;  ///< numbers in its descriptor table
  bool stopped = false;            ///< by job control (SIGSTOP and kin)
  MSGPACK_DEFINE_MAP(process, threads, close_on_exec, stopped)
};

/// A thread as it is before the freeze. In it only what differs is said again.
struct ThreadAhead {
  PodPid tid;
  objects::ThreadSettings settings;
  bool sleeps = false;  ///< in a call that will need a restart block
  MSGPACK_DEFINE_MAP(tid, settings, sleeps)
};

struct ProcessAhead {
  PodPid pid;
  std::vector<ThreadAhead> threads;
  MSGPACK_DEFINE_MAP(pid, threads)
};

/// What can be done before the pod stands still.
struct Freezing {
  PodPid first;                         ///< whose end is the pod's end
  std::vector<ProcessAhead> processes;  ///< whose memory is there, so that what is registered in it can be
  std::vector<pod::Neighbour> neighbours;
  MSGPACK_DEFINE_MAP(first, processes, neighbours)
};

struct State {
  std::vector<ProcessImage> processes;
  PodPid last_pid;  ///< numbers go on from here
  MSGPACK_DEFINE_MAP(processes, last_pid)
};

struct Objects {
  std::vector<objects::Image> images;  ///< position = ObjectId; empty where the object is kept
  MSGPACK_DEFINE_MAP(images)
};

/// Of those that were sent ahead; said once more when the pod had to go on for a moment.
struct ObjectsKept {
  std::vector<objects::Kept> kept;
  MSGPACK_DEFINE_MAP(kept)
};

/// Objects as they are while the pod runs.
struct ObjectsAhead {
  std::vector<objects::AheadImage> images;
  MSGPACK_DEFINE_MAP(images)
};

/// What the destination did between two messages, itemised.
struct Spans {
  std::vector<Span> spans;
  MSGPACK_DEFINE_MAP(spans)
};

/// A part of one of the pod's trees of files; see pod/upper.hpp.
struct Files {
  std::uint8_t tree = 0;  ///< position in `trees`
  Bytes message;
  MSGPACK_DEFINE_MAP(tree, message)
};

/// Trees of files that travel with a pod, by their place in its root: its own writes, and what lies in its shared
/// memory file system.
inline constexpr std::array<std::string_view, 2> trees{"/", "/dev/shm"};

struct Frames {
  std::vector<Bytes> frames;
  MSGPACK_DEFINE_MAP(frames)
};

struct Go {
  std::vector<Bytes> frames;
  bool by_word = false;  ///< an operator's, against a store that gave no answer: the record has yet to be told
  MSGPACK_DEFINE_MAP(frames, by_word)
};

struct Running {
  std::int64_t at = 0;  ///< destination's CLOCK_MONOTONIC when the last thread could run and the network was open
  std::vector<Span> spans;
  MSGPACK_DEFINE_MAP(at, spans)
};

/// A part of the log. Its place is said: what comes again changes nothing.
struct Log {
  std::string segment;
  std::uint64_t at = 0;  ///< bytes of the segment before it
  Bytes content;
  MSGPACK_DEFINE_MAP(segment, at, content)
};

/// Of the pod's first program.
struct StreamsEnd {
  bool input_ended = false;
  MSGPACK_DEFINE_MAP(input_ended)
};

struct Text {
  std::string text;
  MSGPACK_DEFINE_MAP(text)
};

}  // namespace godwit::migrate::wire
