#include "migrate/pager.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/caught.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "kernel/priority.hpp"
#include "migrate/channel.hpp"
#include "migrate/owed_log.hpp"
#include "migrate/remainder.hpp"

namespace godwit::migrate {

namespace {

/// What the log says to have been given up of an address space that nobody is left in.
constexpr Range everything{0, UINT64_MAX};

/// One address space. A process that forks while it is owed pages becomes two, both served from the same pages of the
/// source.
struct Space {
  SpaceId source = 0;        ///< whose pages at the source
  std::uint32_t number = 0;  ///< in the log
  kernel::Userfaultfd fault;
  PageSet owed;                                       ///< by address here
  std::vector<std::pair<Range, std::int64_t>> moved;  ///< mremap: address here minus address at the source, newest last
  PageSet written;  ///< what the log says that is owed: pages that have come as well, until the program gives them up
  [[nodiscard]] std::uint64_t at_source(std::uint64_t address) const {
    for (auto move = moved.rbegin(); move != moved.rend(); ++move)
      if (address >= move->first.begin && address < move->first.end)
        return address - static_cast<std::uint64_t>(move->second);
    return address;
  }

  /// The program has given this up.
  void removed(Range range) {
    if (range == everything) {
      owed.clear();
      written.clear();
      return;
    }
    owed.remove(range);
    written.remove(range);
  }

  /// It has moved it. What is owed of it is owed there now.
  void remapped(Range from, std::uint64_t to_begin) {
    const std::uint64_t shift = to_begin - from.begin;
    std::vector<std::pair<Range, std::int64_t>> landed;
    for (const auto& run : written.runs(from)) {
      for (std::uint64_t at = run.begin; at < run.end; at += page_size) {
        const auto origin = at_source(at);
        const auto here = at + shift;
        const auto difference = static_cast<std::int64_t>(here - origin);
        if (!landed.empty() && landed.back().first.end == here && landed.back().second == difference)
          landed.back().first.end += page_size;
        else
          landed.push_back({{here, here + page_size}, difference});
      }
      written.remove(run);
      written.add({run.begin + shift, run.end + shift});
    }
    for (const auto& run : owed.runs(from)) {
      owed.remove(run);
      owed.add({run.begin + shift, run.end + shift});
    }
    for (auto& entry : landed) moved.push_back(entry);
  }
};

constexpr auto answer_limit = std::chrono::seconds(10);
const std::string log_name = "owed";
const std::string fault_prefix = "owed-";

std::string fault_name(std::uint32_t space) {
  return fault_prefix + std::to_string(space);
}

/// Whether nobody is left in an address space: its process has ended, or has become another program (exec). poll(2)
/// doesn't tell; ESRCH does, from what needs the memory. Taking write protection off where there never was any is what
/// changes nothing.
bool deserted(const kernel::Userfaultfd& fault) {
  constexpr std::uint64_t anywhere = 0x7f0000000000;
  uffdio_writeprotect nothing{};
  nothing.range = {anywhere, page_size};
  nothing.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  return ::ioctl(fault.fd(), UFFDIO_WRITEPROTECT, &nothing) != 0 && errno == ESRCH;
}

}  // namespace

struct Pager::Parts {
  Parts(pod::Pod& owing, OwedLog written) : pod(owing), log(std::move(written)) {}

  pod::Pod& pod;
  OwedLog log;
  Stream reference;             ///< none: faults wait until there is a new one. Only the thread touches it
  std::optional<Stream> fresh;  ///< the new one; guarded by `mutex`
  Fd wake;                      ///< eventfd: the end, or a new connection
  /// Who puts pushed pages in place has no priority, and must not keep the faults waiting for it.
  kernel::InheritingMutex mutex;  ///< guards the spaces, the order of events, and what is put in place: an event is
                                  ///< read and obeyed in one piece
  std::map<std::uint32_t, Space> spaces;  ///< by number. Only the thread takes one out
  std::uint32_t next_number = 0;          ///< never given twice: the log tells spaces apart by it
  std::uint32_t looked_at = 0;            ///< the space that was looked at last: is anybody left in it?
  std::size_t looks = 0;                  ///< and so many others are to be looked at
  std::optional<Error> lost;              ///< why the source will never answer what it was asked
  std::jthread thread;
  std::atomic<bool> ending = false;

  void nudge() const {
    const std::uint64_t one = 1;
    (void)!::write(wake.get(), &one, sizeof one);
  }

  void stop() {
    if (!thread.joinable()) return;
    ending = true;
    nudge();
    thread.join();
  }

  void note(const OwedLog::Entry& entry) {
    if (const auto noted = log.add(entry); !noted) log::error("{}: {}", pod.spec().name, noted.error().message());
  }

  /// Another address space. Its userfaultfd is left with the pod's init, too: when that fails it is served all the
  /// same, but only as long as this daemon lives.
  Result<void> keep(Space space) {
    const auto number = space.number;
    const auto& kept = spaces.emplace(number, std::move(space)).first->second;
    return pod.deposit(fault_name(number), kept.fault.fd());
  }

  /// The init's copy of a descriptor is closed. What isn't there, or has gone with the init, is as good.
  Result<void> forget(const std::string& name) {
    constexpr int attempts = 3;
    for (int attempt = 1;; ++attempt) {
      auto forgotten = pod.forget(name);
      if (forgotten || forgotten.error().kind == ErrorKind::not_found || forgotten.error().kind == ErrorKind::gone)
        return {};
      if (attempt == attempts) return forgotten;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }

  /// A process has forked. The parent goes on as soon as this has been read, and nothing tells which process the child
  /// will be.
  void forked(const Space& parent, Fd fault) {
    constexpr std::size_t looks_each = 8;
    Space child{.source = parent.source,
                .number = next_number++,
                .owed = parent.owed,
                .moved = parent.moved,
                .written = parent.written};
    child.fault = kernel::Userfaultfd::take(std::move(fault));
    note({.kind = OwedLog::Entry::forked, .space = parent.number, .a = child.number});
    looks += looks_each;
    const auto kept = keep(std::move(child));
    if (kept) return;
    // With this daemon the last holder of the child's userfaultfd would die, and what is missing would read as zeros.
    log::error("{} ends: what a forked process of it is owed can't be kept safe: {}", pod.spec().name,
               kept.error().message());
    if (const auto killed = pod.workload().kill(); !killed)
      log::error("{}: {}", pod.spec().name, killed.error().message());
  }

  /// Lets go of spaces that nobody is left in, with a descriptor of ours and of the init's each: a pod may fork any
  /// number of times. Each fork pays for a look at a few, so that those that are over can't pile up. The mutex is held.
  void drop_deserted() {
    for (looks = std::min(looks, spaces.size()); looks > 0; --looks) {
      auto next = spaces.upper_bound(looked_at);
      if (next == spaces.end()) next = spaces.begin();
      if (next == spaces.end()) break;
      looked_at = next->first;
      if (!deserted(next->second.fault)) continue;
      // The log first: what is owed and isn't kept would be lost.
      note({.kind = OwedLog::Entry::removed, .space = next->first, .a = everything.begin, .b = everything.end});
      if (const auto forgotten = forget(fault_name(next->first)); !forgotten)
        log::warn("{}: {}", pod.spec().name, forgotten.error().message());
      spaces.erase(next);
    }
    looks = 0;
  }

  Space* find(std::uint32_t number) {
    const auto found = spaces.find(number);
    return found == spaces.end() ? nullptr : &found->second;
  }

  /// Fills a stretch of owed pages from its beginning, as far as it goes in one piece: how many bytes are in place now.
  /// 0: the layout has changed or is changing, and what is owed where has to be looked up anew. The mutex is held.
  Result<std::uint64_t> fill(Space& space, Range run, const std::uint8_t* data) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    for (;;) {
      auto done = data != nullptr ? space.fault.copy(run.begin, data, run.size(), true)
                                  : space.fault.zero(run.begin, run.size(), true);
      if (done && *done == 0) {
        // A page is there: the fault, if there was one, is tried again.
        (void)space.fault.wake(run.begin, page_size);
        done = page_size;
      }
      if (!done && done.error().kind == ErrorKind::busy) {
        const bool changed = TRY(obey(space));
        // The thread serves what was read here, and it may not have seen it.
        if (changed || !faults.empty()) nudge();
        if (changed) return 0;
        // The event has been read, but the program hasn't gone on yet; or it is just about to say what it does.
        if (std::chrono::steady_clock::now() > give_up) return std::unexpected(done.error());
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        continue;
      }
      if (!done && done.error().kind == ErrorKind::gone) {
        // Nobody is left in it.
        space.owed.clear();
        return run.size();
      }
      // Nothing can fault where nothing is registered.
      if (!done && done.error().code == ENOENT) done = run.size();
      if (!done) return done;
      space.owed.remove({run.begin, run.begin + *done});
      return done;
    }
  }

  /// Where the page that the source has at `origin` is owed now.
  static std::optional<std::uint64_t> owed_at(const Space& space, std::uint64_t origin) {
    const auto here = [&](std::uint64_t address) {
      return space.owed.contains(address) && space.at_source(address) == origin;
    };
    if (here(origin)) return origin;
    for (auto move = space.moved.rbegin(); move != space.moved.rend(); ++move) {
      const auto address = origin + static_cast<std::uint64_t>(move->second);
      if (address >= move->first.begin && address < move->first.end && here(address)) return address;
    }
    return {};
  }

  /// Puts what is owed of one range of the source in place. The mutex is held.
  Result<void> place(Space& space, Range range, const std::uint8_t* data) {
    const auto at = [&](std::uint64_t origin) { return data != nullptr ? data + (origin - range.begin) : nullptr; };
    std::uint64_t origin = range.begin;
    while (origin < range.end && space.moved.empty()) {
      const auto runs = space.owed.runs({origin, range.end});
      if (runs.empty()) return {};
      origin = runs.front().begin;
      origin += TRY(fill(space, runs.front(), at(origin)));
    }
    // Page by page where the program has moved something since.
    for (; origin < range.end; origin += page_size) {
      while (const auto here = owed_at(space, origin))
        if (TRY(fill(space, {*here, *here + page_size}, at(origin))) != 0) break;
    }
    return {};
  }

  std::vector<std::pair<std::uint32_t, std::uint64_t>> faults;  ///< the space's number, and the page

  /// Reads and obeys all events of a space; faults are noted. True when the layout has changed. The mutex is held.
  Result<bool> obey(Space& space) {
    uffd_msg event;
    bool changed = false;
    while (TRY(space.fault.read(event))) {
      changed = changed || event.event != UFFD_EVENT_PAGEFAULT;
      switch (event.event) {
        case UFFD_EVENT_PAGEFAULT:
          faults.emplace_back(space.number, event.arg.pagefault.address & ~(page_size - 1));
          break;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP: {
          const Range range{event.arg.remove.start, event.arg.remove.end};
          if (!space.written.runs(range).empty())
            note({.kind = OwedLog::Entry::removed, .space = space.number, .a = range.begin, .b = range.end});
          space.removed(range);
          break;
        }
        case UFFD_EVENT_REMAP: {
          const Range from{event.arg.remap.from, event.arg.remap.from + event.arg.remap.len};
          if (!space.written.runs(from).empty())
            note({OwedLog::Entry::moved, space.number, from.begin, from.end, event.arg.remap.to});
          space.remapped(from, event.arg.remap.to);
          break;
        }
        case UFFD_EVENT_FORK:
          forked(space, Fd(static_cast<int>(event.arg.fork.ufd)));
          break;
        default:
          break;
      }
    }
    return changed;
  }

  struct Pending {
    std::uint32_t space;  ///< its number: by the time of the answer it may be over
    SpaceId source;
    std::uint64_t address;
    std::uint64_t origin;  ///< at the source, when it was asked for: by the time of the answer something else may stand
                           ///< at the address
    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
  };
  std::deque<Pending> pending;  ///< asked for, in the order of the answers
  Pager::Starving starving;     ///< not called yet
  bool forsaken = false;        ///< the processes are dead: nobody would ever see what is put in place

  Result<void> ask(const Pending& wanted) {
    const PageHeader question{wanted.source, PageHeader::data, wanted.origin, page_size};
    return send_all(reference, &question, sizeof question);
  }

  void broken(const Error& why) {
    if (reference) log::warn("{}: page faults wait: {}", pod.spec().name, why.message());
    reference.reset();
    starve(why);
  }

  void starve(const Error& why) {
    if (const auto tell = std::exchange(starving, {})) forsaken = tell(why);
  }

  static void give_zeros(Space& space, std::uint64_t address) {
    const auto zeroed = space.fault.zero(address, page_size, true);
    if (!zeroed || *zeroed == 0) (void)space.fault.wake(address, page_size);
  }

  /// Milliseconds that poll(2) may wait; -1: for ever.
  [[nodiscard]] int patience() const { return starving && !pending.empty() ? 1000 : -1; }

  /// The mutex is held.
  void serve_faults() {
    for (const auto& [number, address] : std::exchange(faults, {})) {
      Space* const space = find(number);
      if (space == nullptr) continue;
      if (forsaken || !space->owed.contains(address)) {
        give_zeros(*space, address);
        continue;
      }
      const auto origin = space->at_source(address);
      if (std::ranges::any_of(pending, [&](const Pending& p) {
            return p.space == number && p.address == address && p.origin == origin;
          }))
        continue;
      pending.push_back({number, space->source, address, origin});
      if (!reference) continue;
      if (const auto asked = ask(pending.back()); !asked) broken(asked.error());
    }
    if (!forsaken) return;
    for (const auto& wanted : std::exchange(pending, {}))
      if (Space* const space = find(wanted.space)) give_zeros(*space, wanted.address);
  }

  /// Takes the answer to the oldest question, which stays asked when this fails: nothing but the whole page is put in
  /// place.
  Result<void> take_answer() {
    // Its beginning is there. While the rest is waited for nobody else is served: the source sends it in one piece.
    const Deadline deadline = std::chrono::steady_clock::now() + answer_limit;
    PageHeader header;
    TRY(receive_all(reference, &header, sizeof header, deadline));
    if (pending.empty()) return fail(ErrorKind::invalid, "an answer to no question");
    const Pending& asked = pending.front();
    if (header.kind > PageHeader::zero || header.space != asked.source || header.address != asked.origin)
      return fail(ErrorKind::invalid, "an answer to another question");
    if (header.size == 0) {
      const std::scoped_lock lock(mutex);
      lost = unreadable(asked.source, asked.origin);
      return std::unexpected(*lost);
    }
    if (header.size != page_size) return fail(ErrorKind::invalid, "{} bytes for a page", header.size);
    std::array<std::uint8_t, page_size> data{};
    if (header.kind == PageHeader::data) TRY(receive_all(reference, data.data(), data.size(), deadline));
    const std::scoped_lock lock(mutex);
    if (Space* const space = find(asked.space)) {
      TRY(place(*space, {asked.origin, asked.origin + page_size}, data.data()));
      // What isn't owed there any more faults again, and gets what it should have.
      (void)space->fault.wake(asked.address, page_size);
    }
    pending.pop_front();
    return {};
  }

  /// What a source means by an answer without bytes: no other will come.
  static Error unreadable(SpaceId space, std::uint64_t address) {
    return {
        ErrorKind::gone, fmt::format("page {:#x} of process {} can't be read there any more", address, space), 0, {}};
  }

  /// A new connection, if there is one: what the old one left unanswered is asked again.
  void renew() {
    {
      const std::scoped_lock lock(mutex);
      if (!fresh) return;
      reference = std::move(*fresh);
      fresh.reset();
    }
    for (const auto& wanted : pending) {
      if (const auto asked = ask(wanted); !asked) return broken(asked.error());
    }
  }

  Result<void> run() {
    for (;;) {
      std::vector<pollfd> waits{{wake.get(), POLLIN, 0}, {reference ? reference.fd() : -1, POLLIN, 0}};
      std::vector<std::uint32_t> waiting;
      {
        const std::scoped_lock lock(mutex);
        for (const auto& [number, space] : spaces) {
          waits.push_back({space.fault.fd(), POLLIN, 0});
          waiting.push_back(number);
        }
      }
      const bool ready = reference && reference.ready();
      if (::poll(waits.data(), waits.size(), ready ? 0 : patience()) < 0 && errno != EINTR)
        return fail_errno("wait for faults");
      if (waits[0].revents != 0) {
        std::uint64_t count = 0;
        (void)!::read(wake.get(), &count, sizeof count);
        if (ending) return {};
        renew();
      }
      if (reference && (ready || (waits[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0))
        if (const auto taken = take_answer(); !taken) broken(taken.error());
      if (!pending.empty() && std::chrono::steady_clock::now() - pending.front().since > answer_limit)
        starve(Error{ErrorKind::timeout, "a page that was asked for doesn't come", 0, ""});
      const std::scoped_lock lock(mutex);
      for (std::size_t i = 0; i < waiting.size(); ++i)
        if ((waits[i + 2].revents & POLLIN) != 0) TRY(obey(spaces.at(waiting[i])));
      serve_faults();
      drop_deserted();
    }
  }

  /// What is owed in one piece at the source, at most `most` bytes from the beginning; nothing when nothing is owed.
  std::optional<std::pair<SpaceId, Range>> next_owed(std::uint64_t most) {
    const std::scoped_lock lock(mutex);
    for (const auto& [number, space] : spaces) {
      const auto run = space.owed.first();
      if (!run) continue;
      // In one piece here is not in one piece there, once the program has moved something.
      Range wanted{space.at_source(run->begin), 0};
      wanted.end = wanted.begin + (space.moved.empty() ? std::min(run->size(), most) : page_size);
      return std::pair{space.source, wanted};
    }
    return {};
  }

  Result<void> fetch_all(Stream& bulk) {
    const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(max_piece);
    while (const auto wanted = next_owed(max_piece)) {
      {
        const std::scoped_lock lock(mutex);
        if (lost) return std::unexpected(*lost);
      }
      const auto& [space, range] = *wanted;
      const PageHeader question{space, PageHeader::data, range.begin, range.size()};
      TRY(send_all(bulk, &question, sizeof question));
      PageHeader answer;
      TRY(receive_all(bulk, &answer, sizeof answer, std::chrono::minutes(1)));
      const bool zero = answer.kind == PageHeader::zero;
      if (answer.kind > PageHeader::zero || answer.space != space || answer.address != range.begin)
        return fail(ErrorKind::invalid, "an answer to another question");
      if (answer.size == 0) return std::unexpected(unreadable(space, range.begin));
      if (answer.size > range.size() || answer.size % page_size != 0)
        return fail(ErrorKind::invalid, "{} bytes for {} that were asked for", answer.size, range.size());
      if (!zero) TRY(receive_all(bulk, buffer.get(), answer.size, std::chrono::minutes(1)));
      TRY(put(space, range.begin, zero ? nullptr : buffer.get(), answer.size));
    }
    return {};
  }

  Result<void> put(SpaceId space, std::uint64_t address, const std::uint8_t* bytes, std::size_t size) {
    // A fault waits for no more than one of these.
    constexpr std::uint64_t most_at_once = 32 * KiB;
    for (std::uint64_t done = 0; done < size;) {
      const std::uint64_t part = std::min<std::uint64_t>(size - done, most_at_once);
      const Range range{address + done, address + done + part};
      const std::scoped_lock lock(mutex);
      // A fork in between adds a space at the end, which is owed what its parent was.
      for (auto& [number, one] : spaces)
        if (one.source == space) TRY(place(one, range, bytes != nullptr ? bytes + done : nullptr));
      done += part;
    }
    return {};
  }

  /// As an earlier daemon has written it down.
  Result<void> replay() {
    const auto out_of_order = [] { return fail(ErrorKind::invalid, "the log of owed pages is out of order"); };
    for (const auto& entry : TRY(log.read())) {
      if (entry.kind == OwedLog::Entry::made) {
        if (entry.space != next_number) return out_of_order();
        spaces[next_number++] = {.source = static_cast<SpaceId>(entry.a), .number = entry.space};
        continue;
      }
      if (entry.space >= next_number) return out_of_order();
      Space& space = spaces.at(entry.space);
      switch (entry.kind) {
        case OwedLog::Entry::owed:
          space.owed.add({entry.a, entry.b});
          space.written.add({entry.a, entry.b});
          break;
        case OwedLog::Entry::removed:
          space.removed({entry.a, entry.b});
          break;
        case OwedLog::Entry::moved:
          space.remapped({entry.a, entry.b}, entry.c);
          break;
        default:
          if (entry.a != next_number) return out_of_order();
          spaces[next_number++] = {.source = space.source,
                                   .number = static_cast<std::uint32_t>(entry.a),
                                   .owed = space.owed,
                                   .moved = space.moved,
                                   .written = space.written};
      }
    }
    return {};
  }
};

Pager::Pager(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Result<std::unique_ptr<Pager>> Pager::make(pod::Pod& pod, Stream reference) {
  auto parts = std::make_unique<Parts>(pod, TRY(OwedLog::make()));
  parts->reference = std::move(reference);
  parts->wake.reset(::eventfd(0, EFD_CLOEXEC));
  TRY(pod.deposit(log_name, parts->log.fd()));
  return std::unique_ptr<Pager>(new Pager(std::move(parts)));
}

Result<std::unique_ptr<Pager>> Pager::adopt(pod::Pod& pod) {
  auto written = pod.withdraw(log_name);
  if (!written && written.error().kind == ErrorKind::not_found) {
    // Nothing is owed any more; what the earlier daemon has not come to forget is of no use.
    for (const auto& name : TRY(pod.deposits(fault_prefix))) TRY(pod.forget(name));
    return nullptr;
  }
  if (!written) return std::unexpected(written.error());
  auto parts = std::make_unique<Parts>(pod, TRY(OwedLog::take(std::move(*written))));
  parts->wake.reset(::eventfd(0, EFD_CLOEXEC));
  TRY(parts->replay());
  for (auto next = parts->spaces.begin(); next != parts->spaces.end();) {
    auto& [number, space] = *next;
    auto fault = pod.withdraw(fault_name(number));
    // One that nobody was left in.
    if (!fault && fault.error().kind == ErrorKind::not_found && space.owed.pages() == 0) {
      next = parts->spaces.erase(next);
      continue;
    }
    space.fault = kernel::Userfaultfd::take(TRY(std::move(fault)));
    // What the earlier daemon had read of it isn't told again: whoever waits tries again.
    for (const auto& run : space.owed.all()) (void)space.fault.wake(run.begin, run.size());
    ++next;
  }
  return std::unique_ptr<Pager>(new Pager(std::move(parts)));
}

Pager::~Pager() {
  // What the pod's init keeps stays: the next daemon goes on with it.
  parts_->stop();
}

Result<void> Pager::add(SpaceId source, kernel::Userfaultfd fault, PageSet owed) {
  Space space{.source = source, .number = parts_->next_number++, .owed = std::move(owed)};
  space.written = space.owed;
  space.fault = std::move(fault);
  std::vector<OwedLog::Entry> entries{{.kind = OwedLog::Entry::made, .space = space.number, .a = source}};
  for (const auto& run : space.owed.all())
    entries.push_back({.kind = OwedLog::Entry::owed, .space = space.number, .a = run.begin, .b = run.end});
  TRY(parts_->log.add(entries));
  return parts_->keep(std::move(space));
}

Result<void> Pager::begin(Starving starving) {
  parts_->starving = std::move(starving);
  return caught([this]() -> Result<void> {
    parts_->thread = std::jthread([parts = parts_.get()] {
      if (const auto outcome = caught([&] { return parts->run(); }); !outcome)
        log::error("page faults are no longer served: {}", outcome.error().message());
    });
    return {};
  });
}

Result<void> Pager::put(SpaceId space, std::uint64_t address, const void* data, std::size_t size) {
  return parts_->put(space, address, static_cast<const std::uint8_t*>(data), size);
}

std::uint64_t Pager::owed_pages() {
  const std::scoped_lock lock(parts_->mutex);
  std::uint64_t pages = 0;
  for (const auto& [number, space] : parts_->spaces) pages += space.owed.pages();
  return pages;
}

namespace {

/// What the source says first on a connection for pages.
Result<void> greeted(Stream& connection) {
  std::uint8_t word = 0;
  TRY(receive_all(connection, &word, sizeof word, std::chrono::seconds(10)));
  if (word == static_cast<std::uint8_t>(PagesLeft::here)) return {};
  if (word == static_cast<std::uint8_t>(PagesLeft::lost)) return fail(ErrorKind::gone, "it hasn't them any more");
  return fail(ErrorKind::busy, "it isn't ready to give them");
}

}  // namespace

Result<void> Pager::fetch(const Source& source) {
  using Clock = std::chrono::steady_clock;
  constexpr auto pause = std::chrono::milliseconds(200);
  auto last_contact = Clock::now();
  const auto attempt = [&]() -> Result<void> {
    Stream reference = TRY(source.connect());
    TRY(greeted(reference));
    Stream bulk = TRY(source.connect());
    TRY(greeted(bulk));
    {
      const std::scoped_lock lock(parts_->mutex);
      parts_->fresh = std::move(reference);
      // Whoever said so was another: the migration itself, while what it leaves is served by a remainder.
      parts_->lost.reset();
    }
    parts_->nudge();
    fault::reach("pager.resumed");
    TRY(parts_->fetch_all(bulk));
    // That it has heard is its own affair: it asks, when it hasn't.
    PageHeader word{.kind = PageHeader::drained};
    if (send_all(bulk, &word, sizeof word)) (void)receive_all(bulk, &word, sizeof word, std::chrono::seconds(5));
    return {};
  };
  for (;;) {
    const std::uint64_t before = owed_pages();
    const auto fetched = attempt();
    // Whatever the source says: nobody needs it any more.
    if (!fetched && owed_pages() == 0) return {};
    if (fetched || fetched.error().kind == ErrorKind::gone) return fetched;
    if (source.stopped()) return fail(ErrorKind::cancelled, "this daemon ends");
    // A source that is there but busy with itself is no lost one.
    if (fetched.error().kind == ErrorKind::busy || owed_pages() < before) last_contact = Clock::now();
    if (Clock::now() - last_contact > source.patience)
      return fail(ErrorKind::gone, "out of reach for {} s: {}", source.patience.count(), fetched.error().message());
    source.waiting(fetched.error().message());
    std::this_thread::sleep_for(pause);
  }
}

Result<void> Pager::end() {
  parts_->stop();
  const std::scoped_lock lock(parts_->mutex);
  // Should the init keep the log, the next daemon asks for nothing that stands in it.
  for (const auto& [number, space] : parts_->spaces)
    parts_->note({.kind = OwedLog::Entry::removed, .space = number, .a = everything.begin, .b = everything.end});
  // The log first: as long as there is one, the next daemon serves what stands in it. Without one it lets the
  // userfaultfds go.
  auto forgotten = parts_->forget(log_name);
  fault::reach("pager.half-forgotten");
  for (const auto& [number, space] : parts_->spaces) {
    if (!forgotten) break;
    forgotten = parts_->forget(fault_name(number));
  }
  parts_->spaces.clear();
  if (!forgotten)
    return std::unexpected(
        std::move(forgotten).error().within("the pod's init still holds userfaultfds that nobody reads: a fork or "
                                            "munmap in it may wait for the next daemon"));
  return {};
}

}  // namespace godwit::migrate
