#include <algorithm>

#include "migrate/departure.hpp"
#include "migrate/sharing.hpp"

/// Processes that share pages copy-on-write with their parents, at the source: which are forked at the destination,
/// when, and which of their pages are right there by that.
///
/// Such a process isn't announced until the destination has pages of its parent. Then it is forked from the parent
/// there, too. A page is right by that if one frame stands behind it in both here, and if the parent hasn't written it
/// since it was collected; every other page is sent, or dropped, as for any process. Nothing is guessed from who is
/// whose child.
namespace godwit::migrate {

namespace {

/// 256 KiB. What every child has in common with its parent (its stack, its libraries' data) is less, and not worth
/// another round.
constexpr std::uint64_t worth_sharing = 64;

}  // namespace

Leaving* Departure::leaving(PodPid pid) {
  const auto found = std::ranges::find_if(processes_, [&](const auto& entry) { return entry.second.ids.pod == pid; });
  return found == processes_.end() ? nullptr : &found->second;
}

bool Departure::any(bool Leaving::*property) const {
  return std::ranges::any_of(processes_, [&](const auto& entry) { return entry.second.*property; });
}

bool Departure::shares_with_parent(const Leaving& child, const Leaving& parent) const {
  // From before its parent began a session, it has to be made before that there, too, and can't wait.
  if (child.ids.session != child.ids.pod && child.ids.session != parent.ids.session) return false;
  const auto own = child.memory->own_ranges();
  if (!own) return false;
  return about_shared(child.memory->pagemap(), parent.memory->pagemap(), *own).value_or(0) >= worth_sharing;
}

/// Decides for each process that isn't announced whether it waits or is forked, if it isn't made like any other.
/// `may_wait`: until something of the parent has been sent.
void Departure::find_forks(bool may_wait) {
  const bool several = std::ranges::count_if(processes_, [](const auto& entry) { return !!entry.second.memory; }) > 1;
  for (auto& [host, process] : processes_) {
    process.waits = process.forks = false;
    if (process.memory) process.memory->may_share(several);
  }
  for (const auto host : order_) {
    Leaving& child = processes_.at(host);
    const Leaving* parent = leaving(child.ids.parent);
    if (child.announced || !child.memory || parent == nullptr || !parent->memory) continue;
    const bool there = parent->announced && parent->memory->collections() > 0;
    if ((!there && !may_wait) || !shares_with_parent(child, *parent)) continue;
    child.forks = there;
    child.waits = !there;
  }
  // Who needs somebody else there waits with them.
  for (bool again = true; std::exchange(again, false);) {
    for (auto& [host, process] : processes_) {
      if (process.announced || process.waits) continue;
      for (const auto needed : {process.ids.parent, process.ids.session}) {
        const Leaving* other = leaving(needed);
        if (other == nullptr || other == &process || !other->waits) continue;
        process.waits = again = true;
        process.forks = false;
      }
    }
  }
}

/// All pages of a process that is being forked but those that fork puts right.
Result<void> Departure::collect_forking(Leaving& child, std::vector<Piece>& pieces, const Collect& collect_one) {
  const SourceMemory& parent = *leaving(child.ids.parent)->memory;
  const PageSet there = child.memory->begin_from(parent);
  std::vector<Piece> found;
  // In this order: whatever the child writes from here on is seen by its next collection, and what the parent has
  // written by then is no longer settled.
  TRY(collect_one(child, found));
  const auto own = child.memory->own_ranges();
  const auto same = own ? same_frames(child.memory->pagemap(), parent.pagemap(), *own) : Result<PageSet>{};
  const auto settled = parent.settled();
  // One of them may end just now: everything is sent then.
  const PageSet inherited = same && settled ? in_both(in_both(there, *same), *settled) : PageSet{};
  const auto rest = without(found, inherited);
  pieces.insert(pieces.end(), rest.begin(), rest.end());
  return {};
}

/// The pages of all processes that are at the destination, or will be with this round. Returns how many of them belong
/// to processes that were collected before.
Result<std::uint64_t> Departure::collect(std::vector<Piece>& pieces, const Collect& collect_one) {
  // First who is forked: that depends on what the parents have written since their own last collections.
  for (const auto host : order_) {
    Leaving& child = processes_.at(host);
    if (child.forks) TRY(collect_forking(child, pieces, collect_one));
  }
  std::uint64_t again = 0;
  for (const auto host : order_) {
    Leaving& leaving = processes_.at(host);
    if (!leaving.memory || leaving.waits || leaving.forks) continue;
    const bool before = leaving.memory->collections() > 0;
    const std::size_t first = pieces.size();
    TRY(collect_one(leaving, pieces));
    for (std::size_t i = first; i < pieces.size() && before; ++i) again += pieces[i].range.size() / page_size;
  }
  return again;
}

/// Of one process only what it shares with its parent, while it is being forked, and what its children that wait share
/// with it.
Result<void> Departure::collect_shared(Leaving& process, std::vector<Piece>& pieces) {
  PageSet shared;
  const auto add = [&](const Leaving& child, const Leaving& parent) {
    const auto own = child.memory->own_ranges();
    if (!own) return;
    if (const auto same = same_frames(child.memory->pagemap(), parent.memory->pagemap(), *own))
      for (const auto& run : same->all()) shared.add(run);
  };
  if (process.forks) add(process, *leaving(process.ids.parent));
  for (const auto& [host, child] : processes_)
    if (child.waits && child.memory && child.ids.parent == process.ids.pod) add(child, process);
  auto collected = process.memory->collect_only(shared, objects_, pieces);
  if (!collected && collected.error().kind == ErrorKind::gone) return {};
  return collected;
}

/// On reference a shared page would come once for each process and be each one's own: what is shared, and nothing else,
/// goes before a freeze that sends no pages.
Result<void> Departure::copy_shared() {
  tracking_ = true;
  for (std::uint32_t number = 2; any(&Leaving::waits); ++number) {
    TRY(check_cancelled());
    TRY(begin_round(number));
    std::vector<Piece> pieces;
    TRY(collect(pieces,
                [this](Leaving& process, std::vector<Piece>& found) { return collect_shared(process, found); }));
    const Stopwatch watch;
    const Sent sent = TRY(pages_->send(pieces));
    TRY(end_round(number, sent, watch));
  }
  total_.lap("shared pages");
  return {};
}

/// In the freeze: a round of its own for what has to be there before others can be forked from it.
Result<void> Departure::send_ahead(const std::vector<Piece>& pieces) {
  const Stopwatch watch;
  const wire::Round round{.number = ++round_, .processes = TRY(describe_processes()), .objects = objects_.infos()};
  TRY(control_->send(wire::Type::round, round));
  TRY(expect(wire::Type::ready, step_limit));
  const Sent sent = TRY(pages_->send(pieces));
  return end_round(round.number, sent, watch, step_limit);
}

}  // namespace godwit::migrate
