#include "migrate/departure.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <thread>

#include "base/log.hpp"
#include "kernel/procfs.hpp"
#include "migrate/estimate.hpp"
#include "migrate/limits.hpp"
#include "migrate/machine.hpp"
#include "migrate/recover.hpp"
#include "migrate/rights.hpp"
#include "migrate/tracking.hpp"
#include "objects/memory_object.hpp"

namespace godwit::migrate {

namespace {

constexpr std::uint64_t slice_bytes = 32 * MiB;
constexpr auto building_limit = std::chrono::seconds(60);
/// Processes wait so long for what they share with their parents; a program that forks all the time would have us wait
/// for ever.
constexpr std::uint32_t most_rounds_for_sharing = 8;

std::vector<PodPid> pod_ids(const std::vector<ThreadIds>& threads) {
  std::vector<PodPid> ids;
  for (const auto& thread : threads) ids.push_back(thread.pod);
  return ids;
}

std::uint64_t page_count(const std::vector<Piece>& pieces) {
  std::uint64_t pages = 0;
  for (const auto& piece : pieces) pages += piece.range.size() / page_size;
  return pages;
}

}  // namespace

Departure::Departure(pod::Pod& pod, const Options& options, const Connect& connect, const SourceSite& site,
                     Report& report)
    : pod_(pod), options_(options), connect_(connect), site_(site), report_(report) {
  report_.pod = pod.spec().name;
  report_.source = site.node;
  report_.destination = site.destination;
  report_.asked = report_.strategy = options.strategy;
}

void Departure::tell(std::string phase) {
  if (!site_.progress) return;
  Progress progress{.phase = std::move(phase), .round = round_, .bytes_sent = report_.bytes_sent};
  for (const auto& round : report_.rounds) progress.pages_sent += round.pages + round.zero_pages;
  const auto elapsed = total_.total_us();
  progress.bytes_per_second = elapsed == 0 ? 0 : progress.bytes_sent * 1'000'000 / elapsed;
  site_.progress(progress);
}

Result<void> Departure::check_cancelled() {
  if (site_.cancelled.load()) return fail(ErrorKind::cancelled, "the migration of {} was cancelled", report_.pod);
  if (site_.deadline && std::chrono::steady_clock::now() > *site_.deadline)
    return fail(ErrorKind::timeout, "the migration of {} was not done by its deadline", report_.pod);
  return {};
}

Result<Message> Departure::expect(wire::Type type, std::chrono::milliseconds limit) {
  constexpr auto step = std::chrono::milliseconds(100);
  const auto give_up = std::chrono::steady_clock::now() + limit;
  while (!committing_ && !control_->readable(step)) {
    TRY(check_cancelled());
    if (std::chrono::steady_clock::now() > give_up)
      return fail(ErrorKind::unreachable, "{} has said nothing for {} ms", site_.destination, limit.count());
  }
  auto message = TRY(control_->receive(limit));
  const auto got = static_cast<wire::Type>(message.type);
  if (got == type) return message;
  if (got == wire::Type::abort) {
    const auto why = TRY(image::unpack<wire::Text>(message.payload));
    return fail(ErrorKind::failed, "{}: {}", site_.destination, shown(why.text));
  }
  if (got == wire::Type::refused) {
    const auto reasons = shown(TRY(image::unpack<wire::Refused>(message.payload)).reasons);
    report_.refusals.insert(report_.refusals.end(), reasons.begin(), reasons.end());
    return fail(ErrorKind::refused, "{} refuses {}: {}", site_.destination, report_.pod,
                reasons.empty() ? "no reason given" : reasons.front());
  }
  return fail(ErrorKind::invalid, "{} answered with message {} instead of {}", site_.destination, message.type,
              static_cast<int>(type));
}

// --- negotiate and preflight -----------------------------------------------------------------------------------------

Result<wire::Hello> Departure::introduce() {
  wire::Hello hello{
      .from = site_.node, .spec = pod_.spec(), .strategy = options_.strategy, .dry_run = options_.dry_run};
  hello.machine = TRY(read_machine());
  for (const auto& ids : TRY(read_tree(pod_.init()))) {
    auto status = kernel::read_status(ids.host);
    if (status) hello.resident += status->resident_bytes + status->swap_bytes;
    const auto open = kernel::list_descriptors(ids.host);
    if (open) hello.descriptors += open->size();
  }
  hello.files = manifest_ = TRY(used_files());
  hello.connections =
      options_.connections > 0 ? static_cast<std::uint32_t>(std::min(options_.connections, 8)) : page_connections();
  return hello;
}

std::vector<std::string> Departure::refusals() {
  constexpr int looks = 6;
  auto found = refusals_now();
  // The pod runs while it is looked at, and may close, map and end things all the time: an obstacle is only what stays
  // one.
  for (int look = 1; look < looks && !found.empty(); ++look) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * look));
    const auto again = refusals_now();
    std::erase_if(found, [&](const std::string& reason) { return std::ranges::find(again, reason) == again.end(); });
  }
  return found;
}

std::vector<std::string> Departure::refusals_now() {
  std::vector<std::string> found;
  auto tree = read_tree(pod_.init());
  if (!tree) return {tree.error().message()};
  std::vector<ObjectInfo> objects;
  for (const auto& ids : *tree) {
    if (ids.zombie) continue;
    std::vector<std::string> own;
    auto looked = objects::preflight_process(ids.host, own);
    if (!looked && looked.error().kind != ErrorKind::gone) own.push_back(looked.error().message());
    for (const auto& thread : ids.threads) {
      const auto status = kernel::read_status(thread.host);
      if (!status) continue;
      if (auto beyond = beyond_rights(pod_.spec(), thread.host, *status); !beyond.empty())
        own.push_back(fmt::format("thread {}: {}", thread.pod.value, beyond));
    }
    for (auto& reason : own) found.push_back(fmt::format("process {}: {}", ids.pod.value, reason));
    auto maps = kernel::read_maps(ids.body());
    if (!maps) continue;
    auto layout = layout_of(*maps, 0, 0, objects);
    if (!layout) found.push_back(fmt::format("process {}: {}", ids.pod.value, layout.error().message()));
  }
  auto descriptors = SourceDescriptors::open(facts_, *tree);
  if (descriptors)
    for (const auto& object : objects)
      descriptors->shared<objects::MemoryObjectKeys>("memory-objects").keys.insert(object.key);
  if (!descriptors) {
    found.push_back(descriptors.error().message());
  } else {
    for (auto& reason : descriptors->preflight()) found.push_back(std::move(reason));
  }
  return found;
}

Result<std::vector<pod::ManifestEntry>> Departure::used_files() {
  std::set<std::string> paths;
  const auto add = [&](const std::string& path) {
    // What the pod has written itself lies in its upper layer, and travels.
    if (path.starts_with('/') && !path.starts_with("/dev/") && ::access((facts_.upper + path).c_str(), F_OK) != 0)
      paths.insert(path);
  };
  for (const auto& ids : TRY(read_tree(pod_.init()))) {
    if (ids.zombie) continue;
    auto maps = kernel::read_maps(ids.body());
    if (!maps) continue;
    for (const auto& mapping : *maps)
      if (!mapping.shared && mapping.inode != 0 && !mapping.name.ends_with(" (deleted)")) add(mapping.name);
  }
  const auto state = std::filesystem::path(pod_.directory()).parent_path().parent_path();
  auto hashes = pod::HashCache::load(state / "hashes");
  auto described = pod::describe(facts_.root, {paths.begin(), paths.end()}, hashes);
  (void)hashes.save();
  return described;
}

/// How long so many bytes take there and an answer back (us).
Result<std::uint64_t> Departure::probe(std::size_t bytes) {
  const Stopwatch watch;
  TRY(control_->send(static_cast<std::uint8_t>(wire::Type::probe), Bytes(bytes, 0xa5)));
  TRY(expect(wire::Type::probe));
  return watch.total_us();
}

Result<void> Departure::expect_cost() {
  constexpr std::size_t small = 256 * KiB, large = 8 * MiB;
  constexpr std::uint64_t short_us = 20'000;
  auto facts = TRY(survey(pod_));
  facts.round_trip_us = std::min(TRY(probe(0)), TRY(probe(0)));
  facts.link_bytes_per_second = site_.link_bytes_per_second;
  if (facts.link_bytes_per_second == 0) {
    // Little over a slow link, enough over a fast one.
    std::size_t bytes = small;
    auto us = TRY(probe(bytes));
    if (us < short_us) us = TRY(probe(bytes = large));
    facts.link_bytes_per_second =
        bytes * 1'000'000 / std::max<std::uint64_t>(us > facts.round_trip_us ? us - facts.round_trip_us : us, 1);
  }
  const auto cost = estimate(strategy_, facts);
  report_.expected_freeze_us = cost.freeze_us;
  report_.expected_bytes = cost.bytes;
  report_.expected_from = describe(facts);
  return {};
}

Result<void> Departure::negotiate() {
  tell("negotiate");
  const auto strategy = strategy_named(options_.strategy);
  if (!strategy)
    return fail(ErrorKind::invalid,
                "unknown strategy {}; there are freeze, precopy, postcopy, hybrid, eager-dirty and auto",
                options_.strategy);
  strategy_ = *strategy;
  const auto record = TRY(site_.store.get(report_.pod));
  if (!record) return fail(ErrorKind::not_found, "the store has no record of {}", report_.pod);
  if (record->owner != site_.node) return fail(ErrorKind::refused, "{} belongs to {}", report_.pod, record->owner);
  record_ = *record;
  clock_ = TRY(objects::PodClock::of(pod_.init()));
  facts_ = TRY(SourceDescriptors::look_at(pod_));
  report_.refusals = refusals();
  if (!report_.refusals.empty() && !options_.dry_run)
    return fail(ErrorKind::refused, "{} can't be moved: {}", report_.pod, fmt::join(report_.refusals, "; "));

  const auto hello = TRY(introduce());
  control_ = std::make_unique<Channel>(TRY(connect_()));
  TRY(control_->send(wire::Type::hello, hello));
  TRY(expect(wire::Type::welcome));
  total_.lap("negotiate");
  if (options_.dry_run) return expect_cost();

  std::vector<Stream> connections;
  // The destination may get them in another order than they are made: each says first what it is.
  const auto open = [this](std::uint32_t number) -> Result<Stream> {
    Stream connection = TRY(connect_());
    const auto role = static_cast<std::uint8_t>(number);
    TRY(send_all(connection, &role, sizeof role));
    return connection;
  };
  for (std::uint32_t i = 0; i < hello.connections; ++i) connections.push_back(TRY(open(i)));
  reference_ = TRY(open(hello.connections));
  pages_ = std::make_unique<PageSender>(
      std::move(connections),
      [this](SpaceId space, std::span<const Range> ranges, std::uint8_t* to) { return read(space, ranges, to); });
  return {};
}

Result<void> Departure::align_clocks() {
  // The tightest upper bound of several exchanges: time may jump ahead by the shortest way there, and never runs
  // backwards.
  std::int64_t best = INT64_MAX;
  wire::Clock theirs_then{};
  std::int64_t ours_then = 0;
  for (int i = 0; i < 8; ++i) {
    TRY(control_->send(wire::Type::clock, wire::Clock{}));
    const auto theirs = TRY(image::unpack<wire::Clock>(TRY(expect(wire::Type::clock)).payload));
    TRY(check(theirs));
    const auto after = now_ns();
    if (after - theirs.monotonic < best) {
      best = after - theirs.monotonic;
      theirs_then = theirs;
      ours_then = after;
    }
  }
  clock_difference_ = theirs_then.monotonic - ours_then;
  const auto reading = TRY(pod_.clocks());
  const std::int64_t passed = ours_then - reading.at;
  TRY(control_->send(wire::Type::prepare,
                     wire::Prepare{{reading.clocks.monotonic + passed, reading.clocks.boottime + passed},
                                   theirs_then.monotonic,
                                   record_,
                                   executions_}));
  return {};
}

Result<void> Departure::prepare() {
  tell("prepare");
  TRY(check_cancelled());
  // From here on the next daemon can tell of it, if this one dies; soon something of ours is in the pod's processes.
  auto journal = Journal::begin(false, site_.move, site_.destination, record_);
  journal.strategy = options_.strategy;
  journal.began_ms = std::chrono::duration_cast<std::chrono::milliseconds>(site_.began.time_since_epoch()).count();
  TRY(write_journal(pod_, journal));
  const auto life = TRY(pod_.life());
  if (!life.first) return fail(ErrorKind::refused, "{} has no first program", report_.pod);
  first_ = *life.first;
  // The pod is ours alone: there will be no others.
  executions_ = TRY(pod_.executions());
  TRY(align_clocks());
  TRY(expect(wire::Type::ready, building_limit));
  total_.lap("prepare");
  return {};
}

// --- pre-copy --------------------------------------------------------------------------------------------------------

Result<void> Departure::follow_processes() {
  const auto tree = TRY(read_tree(pod_.init()));
  order_.clear();
  std::map<pid_t, Leaving> now;
  std::set<PodPid> passing;
  for (const auto& ids : tree) {
    // What runs in its parent's memory (vfork) is about to execute a program of its own or to end, and whatever we put
    // into it would stay with the parent.
    if (ids.shares_memory || passing.contains(ids.parent)) {
      passing.insert(ids.pod);
      continue;
    }
    // So are the children of one that ends just now, until they are seen as somebody else's.
    if (!ids.zombie) passing.insert(ids.pod);
    order_.push_back(ids.host.value);
    auto known = processes_.extract(ids.host.value);
    Leaving leaving;
    if (!known.empty()) leaving = std::move(known.mapped());
    leaving.ids = ids;
    if (ids.zombie) {
      leaving.memory.reset();
    } else {
      const auto maps = kernel::read_maps(ids.body());
      if (!maps) continue;  // it ends just now
      const bool replaced = leaving.gadget && std::ranges::none_of(*maps, [&](const kernel::Mapping& mapping) {
                              return mapping.begin <= leaving.gadget.begin() && leaving.gadget.begin() < mapping.end;
                            });
      if (!leaving.memory || replaced || !leaving.memory->alive()) {
        auto memory = SourceMemory::open(ids.body(), ids.pod);
        if (!memory) continue;
        // What was opened is the process's of the tree, unless that has ended since.
        if (!is_of(pod_.init(), ids.pod, ids.body()) || !memory->alive()) continue;
        leaving.memory = std::move(*memory);
        leaving.gadget = {};
        leaving.fresh = true;
        leaving.asked_to_track = false;
        leaving.same_capabilities = objects::same_capability_sets(ids.host).value_or(false);
      }
      if (tracking_ && !TRY(track(leaving))) continue;
    }
    passing.erase(ids.pod);
    now.emplace(ids.host.value, std::move(leaving));
  }
  processes_ = std::move(now);
  std::erase_if(order_, [&](pid_t host) { return !processes_.contains(host); });
  return {};
}

/// False: the process has just ended.
Result<bool> Departure::track(Leaving& leaving) {
  if (std::exchange(leaving.asked_to_track, true)) return true;
  const ProcessIds& ids = leaving.ids;
  auto tracking = begin_tracking(pod_.init(), {ids.host, ids.pod}, clock_);
  if (tracking) {
    report_.pauses_us.push_back(tracking->pause_us);
    leaving.memory->track(std::move(tracking->tracker));
    leaving.gadget = tracking->gadget;
    return true;
  }
  const auto now_is = kernel::read_status(ids.host);
  if ((!now_is || now_is->state == 'Z' || now_is->state == 'X') && !ids.leader_exited) return false;
  if (tracking.error().kind != ErrorKind::gone && tracking.error().kind != ErrorKind::timeout)
    return std::unexpected(std::move(tracking).error().within(fmt::format("track process {}", ids.pod.value)));
  return true;
}

Result<std::vector<wire::Process>> Departure::describe_processes() {
  std::vector<wire::Process> described;
  for (const auto host : order_) {
    Leaving& leaving = processes_.at(host);
    if (leaving.waits) continue;
    leaving.announced = true;
    const ProcessIds& ids = leaving.ids;
    wire::Process process{.pid = ids.pod,
                          .parent = ids.parent,
                          .group = ids.group,
                          .session = ids.session,
                          .exit_signal = ids.exit_signal,
                          .zombie = ids.zombie,
                          .exit_code = ids.exit_code,
                          .name = ids.name,
                          .shares_files = ids.shares_files,
                          .shares_filesystem = ids.shares_filesystem,
                          .forked_from = leaving.forks ? ids.parent : PodPid{}};
    process.threads = pod_ids(ids.threads);
    process.leader_exited = ids.leader_exited;
    process.fresh = std::exchange(leaving.fresh, false);
    process.unchanged = leaving.memory && leaving.memory->told();
    if (leaving.memory && !process.unchanged) process.layout = leaving.memory->layout();
    described.push_back(std::move(process));
  }
  return described;
}

Result<void> Departure::begin_round(std::uint32_t number) {
  round_ = number;
  TRY(follow_processes());
  objects_.begin_look();
  for (const auto host : order_) {
    Leaving& leaving = processes_.at(host);
    if (!leaving.memory) continue;
    auto looked = leaving.memory->look(objects_, true, leaving.gadget ? leaving.gadget.begin() : 0,
                                       leaving.gadget ? leaving.gadget.begin() + leaving.gadget.size() : 0);
    if (!looked && looked.error().kind != ErrorKind::gone && looked.error().code != ENOENT) return looked;
  }
  find_forks(number <= most_rounds_for_sharing);
  const wire::Round round{.number = number, .processes = TRY(describe_processes()), .objects = objects_.infos()};
  TRY(control_->send(wire::Type::round, round));
  TRY(expect(wire::Type::ready, building_limit));
  return {};
}

Result<void> Departure::end_round(std::uint32_t number, const Sent& sent, const Stopwatch& watch,
                                  std::chrono::milliseconds limit) {
  TRY(pages_->end_round(number));
  TRY(expect(wire::Type::done, limit));
  report_.rounds.push_back({sent.pages, sent.zero_pages, sent.bytes, watch.total_us()});
  report_.bytes_sent += sent.bytes;
  return {};
}

Result<Next> Departure::copy_round(std::uint32_t number, std::uint64_t resident, std::uint64_t& dirty_before,
                                   std::uint64_t& in_vain) {
  std::vector<Piece> pieces;
  in_vain += TRY(collect(pieces, [this](Leaving& leaving, std::vector<Piece>& found) -> Result<void> {
    auto collected = leaving.memory->collect(objects_, found);
    if (!collected && collected.error().kind == ErrorKind::gone) return {};
    return collected;
  }));
  const std::uint64_t private_pages = page_count(pieces);
  TRY(objects_.collect(pieces));
  const std::uint64_t all = page_count(pieces);
  if (number > 1) in_vain += all - private_pages;
  // What is shared goes before the freeze: on reference it would come once for each, and be each one's own.
  const bool sharing = any(&Leaving::waits) || any(&Leaving::forks);
  const auto dirty_now = [&]() -> std::uint64_t {
    std::uint64_t pages = 0;
    for (const auto host : order_) {
      auto& leaving = processes_.at(host);
      if (leaving.memory && !leaving.waits) pages += leaving.memory->dirty_pages().value_or(0);
    }
    return pages;
  };
  // In slices, so that a hopeless round is left early and a long one shows its progress. Every slice is a round of its
  // own on the page connections.
  std::uint64_t done = 0;
  std::size_t next = 0;
  Stopwatch watch;
  Sent total;
  while (next < pieces.size()) {
    TRY(check_cancelled());
    std::vector<Piece> slice;
    std::uint64_t bytes = 0;
    while (next < pieces.size() && bytes < slice_bytes) {
      Piece& piece = pieces[next];
      const std::uint64_t take = std::min(piece.range.size(), slice_bytes - bytes);
      slice.push_back({piece.space, {piece.range.begin, piece.range.begin + take}});
      bytes += take;
      piece.range.begin += take;
      if (piece.range.size() == 0) ++next;
    }
    total += TRY(pages_->send(slice));
    done += bytes / page_size;
    if (site_.progress) {
      site_.progress({.phase = "precopy",
                      .round = number,
                      .pages_sent = total.pages,
                      .bytes_sent = report_.bytes_sent + total.bytes,
                      .bytes_per_second = total.bytes * 1'000'000 / std::max<std::uint64_t>(watch.total_us(), 1),
                      .bytes_left = (all - done) * page_size});
    }
    if (next < pieces.size() && !sharing) {
      const std::uint64_t dirty = strategy_ == Strategy::automatic ? dirty_now() : 0;
      const auto choice = decide(strategy_, {.round = number,
                                             .round_complete = false,
                                             .resident = resident,
                                             .sent = done,
                                             .in_vain = in_vain + dirty * done / std::max<std::uint64_t>(all, 1),
                                             .dirty = dirty,
                                             .dirty_before = dirty_before});
      if (choice != Next::again) {
        // What of this round wasn't sent isn't there yet.
        for (; next < pieces.size(); ++next) {
          if ((pieces[next].space & object_space) != 0) objects_.postpone(pieces[next]);
          for (auto& [host, leaving] : processes_)
            if (leaving.memory && leaving.memory->space() == pieces[next].space)
              leaving.memory->postpone(pieces[next].range);
        }
        TRY(end_round(number, total, watch));
        return choice;
      }
    }
  }
  TRY(end_round(number, total, watch));
  const std::uint64_t dirty = dirty_now();
  const auto choice = decide(strategy_, {.round = number,
                                         .resident = resident,
                                         .sent = all,
                                         .in_vain = in_vain + dirty,
                                         .dirty = dirty,
                                         .dirty_before = dirty_before});
  dirty_before = dirty;
  return any(&Leaving::waits) ? Next::again : choice;
}

Result<void> Departure::send_files() {
  std::set<std::string> suspects;
  for (const auto& object : objects_.infos())
    if (object.kind == ObjectInfo::Kind::file && object.name.size() > 1) suspects.insert(object.name.substr(1));
  for (std::size_t i = 0; i < trees_.size(); ++i) {
    TRY(trees_[i].pass(
        [&](BytesView message) {
          return control_->send(wire::Type::files,
                                wire::Files{static_cast<std::uint8_t>(i), Bytes(message.begin(), message.end())});
        },
        i == 0 ? suspects : std::set<std::string>{}));
  }
  return {};
}

Result<void> Departure::send_objects_ahead() {
  return SourceDescriptors::look_ahead(
      pod_.init(), TRY(read_tree(pod_.init())), ahead_, [this](std::vector<objects::AheadImage> images) {
        return control_->send(wire::Type::objects_ahead, wire::ObjectsAhead{std::move(images)});
      });
}

Result<void> Departure::copy_while_running() {
  tell("precopy");
  trees_.push_back(TRY(pod::UpperSource::open(pod_.upper())));
  trees_.push_back(TRY(pod::UpperSource::open(facts_.root + std::string(wire::trees[1]))));
  TRY(send_files());
  TRY(send_logs());
  total_.lap("files");
  TRY(send_objects_ahead());
  total_.lap("objects ahead");
  tracking_ = copies_before(strategy_);
  if (!tracking_) {
    TRY(begin_round(1));
    TRY(pages_->end_round(1));
    TRY(expect(wire::Type::done));
    ending_ = decide(strategy_, {});
    total_.lap("layout");
    if (strategy_ == Strategy::postcopy && any(&Leaving::waits)) TRY(copy_shared());
    if (strategy_ == Strategy::postcopy)
      for (const auto host : order_)
        if (auto& memory = processes_.at(host).memory) (void)memory->note_dense();
    return {};
  }
  std::uint64_t dirty_before = 0, in_vain = 0, resident = 0;
  for (std::uint32_t number = 1;; ++number) {
    TRY(check_cancelled());
    TRY(begin_round(number));
    if (number == 1) {
      for (const auto host : order_)
        if (auto& memory = processes_.at(host).memory) resident += memory->resident_pages().value_or(0);
    }
    ending_ = TRY(copy_round(number, resident, dirty_before, in_vain));
    if (ending_ != Next::again) break;
  }
  // Who has come meanwhile.
  TRY(send_objects_ahead());
  TRY(send_logs());
  total_.lap("precopy");
  return {};
}

std::size_t Departure::read(SpaceId space, std::span<const Range> ranges, std::uint8_t* to) {
  if ((space & object_space) != 0) return objects_.read(space, ranges, to);
  for (const auto& [host, leaving] : processes_) {
    if (!leaving.memory || leaving.memory->space() != space) continue;
    return leaving.memory->read(ranges, to);
  }
  return 0;
}

}  // namespace godwit::migrate
