#include "base/log.hpp"
#include "migrate/channel.hpp"
#include "node/pods.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds connect_time{5};

}  // namespace

migrate::Pager::Source Pods::source(const std::string& peer, const std::string& move, const std::string& pod) {
  return {.connect = [this, peer, move]() -> Result<Stream> {
            auto connection = links_.connect(peer, std::string(service::pages) + move, connect_time);
            if (connection) migrate::notice_silence(connection->fd());
            return connection;
          },
          .patience = std::chrono::seconds(config_.page_patience),
          .stopped = [this] { return left_off_.load(); },
          .waiting =
              [this, peer, pod](const std::string& why) {
                const auto local = find(pod);
                if (!local) return;
                const std::string note = fmt::format("waits for pages from {}: {}", peer, why);
                local->change([&](LocalPod::View& view) { view.note = note; });
              }};
}

void Pods::fetch_rest(const std::shared_ptr<LocalPod>& pod, std::unique_ptr<migrate::Pager> pager,
                      const migrate::Journal& journal) {
  log::info("pod {} is still owed {} pages by {}", pod->spec.name, pager->owed_pages(), journal.peer);
  const std::lock_guard lock(mutex_);
  fetching_.emplace_back([this, pod, held = pod->pod_, pager = std::move(pager), journal] {
    const auto fetched = pager->fetch(source(journal.peer, journal.move, pod->spec.name));
    if (!fetched && fetched.error().kind == ErrorKind::cancelled) return;
    if (!fetched) lose(*pod, fetched.error().message());
    // With the journal the next daemon cleans up.
    if (const auto ended = pager->end(); ended)
      migrate::remove_journal(*held);
    else
      log::error("pod {}: {}", pod->spec.name, ended.error().message());
    pod->change([&](LocalPod::View& view) {
      view.settling = false;
      if (fetched) view.note.clear();
    });
  });
}

void Pods::lose(LocalPod& pod, const std::string& why) {
  log::error("pod {}: pages of it are lost, it ends: {}", pod.spec.name, why);
  pod.change([&](LocalPod::View& view) { view.note = "pages that were still to be fetched are lost: " + why; });
  const auto killed = pod.with([](pod::Pod& held) { return held.workload().kill(); });
  if (!killed) log::error("pod {}: {}", pod.spec.name, killed.error().message());
  // Its memory must not be let go before: what is missing in it would read as zeros.
  (void)pod.wait([](const LocalPod::View& view) { return !view.here || view.state == PodState::exited; },
                 in(std::chrono::seconds(60)));
}

}  // namespace godwit::node
