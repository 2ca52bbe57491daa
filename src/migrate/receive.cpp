#include <sys/socket.h>

#include <thread>

#include "base/both.hpp"
#include "base/caught.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "migrate/arrival.hpp"
#include "migrate/recover.hpp"

namespace godwit::migrate {

namespace {

Result<void> until_rebuilt(Arrival& arrival) {
  fault::reach("destination.negotiated");
  TRY(arrival.prepare());
  fault::reach("destination.prepared");
  // Namespaces, root and network port are there; the gate is shut and the clocks stand right.
  TRY(arrival.follow_until_last());
  // The source has stopped the pod. Its memory is in place here, or known to be owed.
  fault::reach("destination.copied");
  TRY(arrival.rebuild());
  fault::reach("destination.rebuilt");
  return {};
}

Result<void> until_ours(Arrival& arrival) {
  // No memory, or a word of the peer's that was taken for granted: it costs this migration, and leaves nothing.
  if (auto outcome = caught([&] { return until_rebuilt(arrival); }); !outcome)
    return std::unexpected(std::move(outcome).error().within("receive " + arrival.report().pod));
  // Every process, thread and descriptor is as it was; all threads are stopped with the program's own registers.
  TRY(arrival.pin());
  // The freezer holds them; nothing has been sent or acknowledged.
  return arrival.await_commit();
}

}  // namespace

Result<Report> receive(Stream control, const Accept& accept, const DestinationSite& site) {
  Arrival arrival(std::move(control), accept, site);
  auto wanted = arrival.negotiate();
  if (!wanted) return std::unexpected(wanted.error());
  if (!*wanted) return arrival.report();
  auto outcome = until_ours(arrival);
  if (!outcome) {
    // In doubt and left so: it stands in the freezer, for the next daemon.
    if (!arrival.undecided()) arrival.give_up(outcome.error());
    return std::unexpected(outcome.error());
  }
  // The store says that this node owns it.
  TRY(arrival.restart());
  fault::reach("destination.restarted");
  // It runs.
  TRY(arrival.settle());
  // Nothing is owed any more.
  return arrival.report();
}

void Arrival::give_up(const Error& why) {
  (void)control_.send(wire::Type::abort, wire::Text{why.message()});
  if (descriptors_) descriptors_->dismiss();
  workshop_.reset();
  // Nothing at that priority is taken down, and a thread that has ended has no number any more.
  raised_receivers_.clear();
  raised_.clear();
  pages_.reset();
  pager_.reset();
  descriptors_.reset();
  if (pod_) {
    // Killed as they stand: one that is let go of before runs with registers of ours, crashes, and takes its siblings
    // along. Those of a process that is dead are in no list but this one, and wait for their tracer.
    std::vector<HostPid> traced;
    for (const auto& [pid, process] : processes_)
      for (const auto& thread : process.threads) traced.push_back(thread.tracee.tid());
    auto gone = pod_->destroy(false, std::move(traced));
    if (!gone) log::error("{}: cleaning up after {}: {}", hello_.spec.name, why.message(), gone.error().message());
  }
  processes_.clear();
  pod_.reset();
}

Result<void> Arrival::settle() {
  for (auto& restored : restores_) {
    auto back = restored.restore.running(restored.tid);
    if (!back && back.error().kind != ErrorKind::gone)
      log::warn("{}: thread {}: {}", hello_.spec.name, restored.tid.value, back.error().message());
  }
  descriptors_.reset();
  workshop_.reset();
  site_.use([](pod::Pod& pod) { (void)pod.forget("builder"); });
  if (!pager_) remove_journal(*pod_);
  fault::reach("destination.settled");

  if (!pager_) return follow_to_the_end();
  const auto follow = [&]() -> Result<void> {
    // The source may be gone, or have come back, since: what counts is that all pages are here.
    (void)follow_to_the_end();
    return {};
  };
  TRY(both([&] { return drain(); }, follow));
  report_.moved = true;
  return {};
}

/// Until every page is here, by whatever way.
Result<void> Arrival::drain() {
  auto complete = pages_->wait(last_.round.number + 1);
  if (!complete) {
    log::warn("{}: {}; the rest is fetched", hello_.spec.name, complete.error().message());
    // A source that waits to hear that all has come wouldn't give it to who asks.
    control_.hang_up();
    complete = pager_->fetch(site_.source());
  }
  if (!complete && complete.error().kind == ErrorKind::gone) site_.lost(complete.error().message());
  if (!complete && complete.error().kind == ErrorKind::cancelled) return complete;
  fault::reach("destination.drained");
  TRY(pager_->end());
  remove_journal(*pod_);
  TRY(complete);
  (void)control_.send(wire::Type::drained, BytesView{});
  return {};
}

/// Frames that the source still passes on, until it says that this was all. It has nothing else to do when it owes
/// nothing.
Result<void> Arrival::follow_to_the_end() {
  const std::chrono::minutes patience{pager_ ? 30 : 1};
  for (;;) {
    auto message = TRY(control_.receive(patience));
    switch (static_cast<wire::Type>(message.type)) {
      case wire::Type::frames: {
        const auto late = TRY(image::unpack<wire::Frames>(message.payload));
        site_.use([&](pod::Pod& pod) {
          for (const auto& frame : late.frames) (void)pod.gate().deliver(frame);
        });
        break;
      }
      case wire::Type::bye:
        report_.moved = true;
        return {};
      default:
        return fail(ErrorKind::invalid, "unexpected message {} after the restart", message.type);
    }
  }
}

}  // namespace godwit::migrate
