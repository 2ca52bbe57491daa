#include "migrate/pager.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.hpp"
#include "kernel/priority.hpp"
#include "migrate/channel.hpp"

namespace godwit::migrate {

namespace {

/// One address space. A process that forks while it is owed pages becomes two, both served from the same pages of the
/// source.
struct Space {
  SpaceId source = 0;  ///< whose pages at the source
  kernel::Userfaultfd fault;
  PageSet owed;                                       ///< by address here
  std::vector<std::pair<Range, std::int64_t>> moved;  ///< mremap: address here minus address at the source, newest last
  [[nodiscard]] std::uint64_t at_source(std::uint64_t address) const {
    for (auto move = moved.rbegin(); move != moved.rend(); ++move)
      if (address >= move->first.begin && address < move->first.end)
        return address - static_cast<std::uint64_t>(move->second);
    return address;
  }
};

}  // namespace

struct Pager::Parts {
  Stream reference;
  Fd wake;  ///< eventfd: the end
  /// Who puts pushed pages in place has no priority, and must not keep the faults waiting for it.
  kernel::InheritingMutex mutex;  ///< guards the spaces, the order of events, and what is put in place: an event is
                                  ///< read and obeyed in one piece
  std::deque<Space> spaces;
  std::jthread thread;
  bool ending = false;

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
        if (TRY(obey(space))) return 0;
        // The event has been read, but the program hasn't gone on yet; or it is just about to say what it does.
        if (std::chrono::steady_clock::now() > give_up) return std::unexpected(done.error());
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        continue;
      }
      // Nothing can fault where nothing is registered, or when the process is gone.
      if (!done && (done.error().kind == ErrorKind::gone || done.error().code == ENOENT)) done = run.size();
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

  std::vector<std::pair<Space*, std::uint64_t>> faults;

  /// Reads and obeys all events of a space; faults are noted. True when the layout has changed. The mutex is held.
  Result<bool> obey(Space& space) {
    uffd_msg event;
    bool changed = false;
    while (TRY(space.fault.read(event))) {
      changed = changed || event.event != UFFD_EVENT_PAGEFAULT;
      switch (event.event) {
        case UFFD_EVENT_PAGEFAULT:
          faults.emplace_back(&space, event.arg.pagefault.address & ~(page_size - 1));
          break;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP:
          space.owed.remove({event.arg.remove.start, event.arg.remove.end});
          break;
        case UFFD_EVENT_REMAP: {
          const Range from{event.arg.remap.from, event.arg.remap.from + event.arg.remap.len};
          const auto shift = static_cast<std::int64_t>(event.arg.remap.to - event.arg.remap.from);
          std::vector<std::pair<Range, std::int64_t>> landed;
          for (const auto& run : space.owed.runs(from)) {
            const Range to{run.begin + static_cast<std::uint64_t>(shift), run.end + static_cast<std::uint64_t>(shift)};
            for (std::uint64_t at = run.begin; at < run.end; at += page_size) {
              const auto origin = space.at_source(at);
              const auto here = at + static_cast<std::uint64_t>(shift);
              const auto difference = static_cast<std::int64_t>(here - origin);
              if (!landed.empty() && landed.back().first.end == here && landed.back().second == difference)
                landed.back().first.end += page_size;
              else
                landed.push_back({{here, here + page_size}, difference});
            }
            space.owed.remove(run);
            space.owed.add(to);
          }
          for (auto& entry : landed) space.moved.push_back(entry);
          break;
        }
        case UFFD_EVENT_FORK: {
          Space child{.source = space.source, .owed = space.owed, .moved = space.moved};
          auto fault = kernel::Userfaultfd::take(Fd(static_cast<int>(event.arg.fork.ufd)));
          child.fault = std::move(fault);
          spaces.push_back(std::move(child));
          break;
        }
        default:
          break;
      }
    }
    return changed;
  }

  Result<void> ask(Space& space, std::uint64_t address) {
    const PageHeader question{space.source, PageHeader::data, space.at_source(address), page_size};
    return send_all(reference, &question, sizeof question);
  }

  struct Pending {
    Space* space;
    std::uint64_t address;
    std::uint64_t origin;  ///< at the source, when it was asked for: by the time of the answer something else may stand
                           ///< at the address
  };
  std::deque<Pending> pending;  ///< asked for, in the order of the answers

  Result<void> serve_faults() {
    for (auto& [space, address] : std::exchange(faults, {})) {
      if (!space->owed.contains(address)) {
        auto zeroed = space->fault.zero(address, page_size, true);
        if (!zeroed || *zeroed == 0) (void)space->fault.wake(address, page_size);
        continue;
      }
      const auto origin = space->at_source(address);
      if (std::ranges::any_of(pending, [&](const Pending& p) {
            return p.space == space && p.address == address && p.origin == origin;
          }))
        continue;
      TRY(ask(*space, address));
      pending.push_back({space, address, origin});
    }
    return {};
  }

  Result<void> take_answer() {
    PageHeader header;
    TRY(receive_all(reference, &header, sizeof header, std::chrono::minutes(10)));
    if (header.size > page_size || pending.empty()) return fail(ErrorKind::invalid, "an answer to no question");
    std::array<std::uint8_t, page_size> data{};
    TRY(receive_all(reference, data.data(), header.size, std::chrono::minutes(10)));
    const Pending asked = pending.front();
    pending.pop_front();
    const std::scoped_lock lock(mutex);
    TRY(place(*asked.space, {asked.origin, asked.origin + page_size}, data.data()));
    // What isn't owed there any more faults again, and gets what it should have.
    (void)asked.space->fault.wake(asked.address, page_size);
    return {};
  }

  Result<void> run() {
    for (;;) {
      std::vector<pollfd> waits{{wake.get(), POLLIN, 0}, {reference.fd(), POLLIN, 0}};
      {
        const std::scoped_lock lock(mutex);
        for (auto& space : spaces) waits.push_back({space.fault.fd(), POLLIN, 0});
      }
      if (::poll(waits.data(), waits.size(), reference.ready() ? 0 : -1) < 0 && errno != EINTR)
        return fail_errno("wait for faults");
      if (waits[0].revents != 0) return {};
      if ((waits[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0 || reference.ready()) TRY(take_answer());
      const std::scoped_lock lock(mutex);
      for (std::size_t i = 2; i < waits.size(); ++i)
        if ((waits[i].revents & POLLIN) != 0) TRY(obey(spaces[i - 2]));
      TRY(serve_faults());
    }
  }
};

Pager::Pager(Stream reference) : parts_(std::make_unique<Parts>()) {
  parts_->reference = std::move(reference);
  parts_->wake.reset(::eventfd(0, EFD_CLOEXEC));
}

Pager::~Pager() {
  (void)end();
}

void Pager::add(SpaceId space, kernel::Userfaultfd fault, PageSet owed) {
  parts_->spaces.push_back({.source = space, .fault = std::move(fault), .owed = std::move(owed)});
}

Result<void> Pager::begin() {
  parts_->thread = std::jthread([parts = parts_.get()] {
    auto outcome = parts->run();
    if (!outcome) log::error("page faults are no longer served: {}", outcome.error().message());
  });
  return {};
}

Result<void> Pager::put(SpaceId space, std::uint64_t address, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  // A fault waits for no more than one of these.
  constexpr std::uint64_t most_at_once = 32 * KiB;
  for (std::uint64_t done = 0; done < size;) {
    const std::uint64_t part = std::min<std::uint64_t>(size - done, most_at_once);
    const Range range{address + done, address + done + part};
    const std::scoped_lock lock(parts_->mutex);
    // A fork in between adds a space at the end, which is owed what its parent was.
    for (std::size_t i = 0; i < parts_->spaces.size(); ++i) {
      Space& candidate = parts_->spaces[i];
      if (candidate.source == space) TRY(parts_->place(candidate, range, bytes != nullptr ? bytes + done : nullptr));
    }
    done += part;
  }
  return {};
}

std::uint64_t Pager::owed_pages() {
  const std::scoped_lock lock(parts_->mutex);
  std::uint64_t pages = 0;
  for (const auto& space : parts_->spaces) pages += space.owed.pages();
  return pages;
}

Result<void> Pager::end() {
  if (parts_->thread.joinable()) {
    const std::uint64_t one = 1;
    if (::write(parts_->wake.get(), &one, sizeof one) < 0) return fail_errno("end the pager");
    parts_->thread.join();
  }
  const std::scoped_lock lock(parts_->mutex);
  parts_->spaces.clear();
  return {};
}

}  // namespace godwit::migrate
