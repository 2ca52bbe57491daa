#include <sys/socket.h>

#include <thread>

#include "base/log.hpp"
#include "migrate/arrival.hpp"
#include "migrate/recover.hpp"

namespace godwit::migrate {

namespace {

Result<void> until_ours(Arrival& arrival) {
  TRY(arrival.prepare());
  // Namespaces, root and network port are there; the gate is shut and the clocks stand right.
  TRY(arrival.follow_until_last());
  // The source has stopped the pod. Its memory is in place here, or known to be owed.
  TRY(arrival.rebuild());
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
    arrival.give_up(outcome.error());
    return std::unexpected(outcome.error());
  }
  // The store says that this node owns it.
  TRY(arrival.restart());
  // It runs.
  TRY(arrival.settle());
  // Nothing is owed any more.
  return arrival.report();
}

void Arrival::give_up(const Error& why) {
  (void)control_.send(wire::Type::abort, wire::Text{why.message()});
  if (descriptors_) descriptors_->dismiss();
  workshop_.reset();
  pages_.reset();
  if (pager_) (void)pager_->end();
  descriptors_.reset();
  // Traced threads die with the pod only when nobody waits for them to be looked at.
  for (auto& [pid, process] : processes_)
    for (auto& thread : process.threads) (void)thread.tracee.detach();
  processes_.clear();
  if (pod_) {
    auto gone = pod_->destroy();
    if (!gone) log::error("{}: cleaning up after {}: {}", hello_.spec.name, why.message(), gone.error().message());
  }
  pod_.reset();
}

Result<void> Arrival::settle() {
  for (auto& [pid, process] : processes_)
    if (process.memory) process.memory->close();
  for (auto& restored : restores_) {
    auto back = restored.restore.running(restored.tid);
    if (!back && back.error().kind != ErrorKind::gone)
      log::warn("{}: thread {}: {}", hello_.spec.name, restored.tid.value, back.error().message());
  }
  remove_journal(*pod_);
  descriptors_.reset();
  workshop_.reset();
  (void)pod_->forget("builder");

  std::jthread draining;
  if (pager_) {
    draining = std::jthread([this] {
      auto complete = pages_->wait(last_.round.number + 1);
      if (!complete) {
        log::error("{}: pages are still owed and {} is out of reach: {}", hello_.spec.name, hello_.from,
                   complete.error().message());
        return;
      }
      (void)pager_->end();
      for (const auto& [pid, process] : processes_) (void)pod_->forget(fmt::format("pager-{}", pid));
      (void)control_.send(wire::Type::drained, BytesView{});
    });
  }
  for (;;) {
    auto message = control_.receive(std::chrono::minutes(30));
    if (!message) return std::unexpected(message.error());
    switch (static_cast<wire::Type>(message->type)) {
      case wire::Type::frames:
        for (const auto& frame : TRY(image::unpack<wire::Frames>(message->payload)).frames)
          (void)pod_->gate().deliver(frame);
        break;
      case wire::Type::bye:
        report_.moved = true;
        return {};
      default:
        return fail(ErrorKind::invalid, "unexpected message {} after the restart", message->type);
    }
  }
}

}  // namespace godwit::migrate
