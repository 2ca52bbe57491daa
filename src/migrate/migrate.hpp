#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "base/stream.hpp"
#include "control/needs.hpp"
#include "image/codec.hpp"
#include "migrate/claim.hpp"
#include "migrate/pager.hpp"
#include "migrate/report.hpp"
#include "pod/pod.hpp"
#include "store/store.hpp"

/// A migration, seen from the daemon: two blocking calls, one on each side, each on a thread of its own (ptrace is
/// bound to a thread).
namespace godwit::migrate {

/// What the user may choose.
struct Options {
  std::string strategy = "auto";  ///< freeze, precopy, postcopy, hybrid, eager-dirty, auto
  bool dry_run = false;           ///< negotiate and preflight only; the report says what would happen
  int connections = 0;            ///< for pages; 0: as many as pay (one per two processors, at least one, at most four)
  MSGPACK_DEFINE_MAP(strategy, dry_run, connections)
};

/// How the source reaches the destination: each call opens one more connection of this migration, already
/// authenticated, as a blocking socket with TCP_NODELAY. The first is the control connection.
using Connect = std::function<Result<Stream>()>;

/// How the destination gets the further connections of a migration that the source has opened: waits for the next one.
using Accept = std::function<Result<Stream>(std::chrono::milliseconds limit)>;

/// What a migration has come to; called from the migration's thread, often. Cheap calls only.
using OnProgress = std::function<void(const Progress&)>;

/// What the source needs of its node.
struct SourceSite {
  std::string move;         ///< the migration's id
  std::string node;         ///< our name
  std::string destination;  ///< the other's
  std::chrono::system_clock::time_point began;
  store::Store& store;
  std::atomic<bool>& cancelled;  ///< set from outside; honoured up to the commit
  /// The commit begins, and from here on it is too late to cancel. False: it has been cancelled.
  std::function<bool()> commits = [] { return true; };
  OnProgress progress;
  InDoubt in_doubt;                                               ///< after a commit whose answer is lost
  std::optional<std::chrono::steady_clock::time_point> deadline;  ///< cancelled by then, up to the commit
  std::uint64_t link_bytes_per_second = 0;  ///< as the last migration there had it; 0: not known, a dry run probes
};

/// Moves a pod away. On success the pod runs at the destination, `pod` is shut and has been torn down to nothing, or,
/// in post-copy, is so when this returns: it stays until the last page has been fetched. On failure before the commit
/// the pod runs on here as if nothing had been (the error says what happened, the report in `report` what it cost);
/// after the commit it runs there.
Result<Report> send(pod::Pod& pod, const Options&, const Connect&, const SourceSite&, Report& report);

/// What the destination needs of its node.
struct DestinationSite {
  std::string move;  ///< the migration's id
  std::string peer;  ///< who sends it, by its own proof
  pod::Site site;
  store::Store& store;
  /// What this node's starter decides about the exact needs: reasons against it; none: there is room, kept until the
  /// migration is over.
  std::function<std::vector<std::string>(const pod::Spec&, const control::Needs&)> decide;
  /// Called once the pod is ours by the store's word, before its first instruction here. It is in place from then on.
  std::function<void(std::shared_ptr<pod::Pod>)> arrived;
  /// From then on: works on it while nobody else does. Not when its program has ended: it is being torn down then, or
  /// has been.
  std::function<void(const std::function<void(pod::Pod&)>&)> use;
  /// When the source is lost, and the store doesn't say whether it has committed before.
  InDoubt in_doubt;
  /// For pages that are still owed when one of the migration's own connections has broken.
  std::function<Pager::Source()> source;
  /// After the restart: they can't be had any more, and the pod must not run on without them.
  std::function<void(const std::string& why)> lost;
  /// So many bytes of it have come. From several threads, now and then.
  std::function<void(std::uint64_t)> received;
};

/// Takes a pod in over the control connection `control`. Returns when nothing is owed any more (after post-copy has
/// drained), with the report of this side. On failure before the commit nothing of it is left here.
Result<Report> receive(Stream control, const Accept&, const DestinationSite&);

}  // namespace godwit::migrate
