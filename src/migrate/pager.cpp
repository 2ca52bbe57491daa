#include "migrate/pager.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <deque>
#include <mutex>
#include <thread>

#include "base/log.hpp"
#include "migrate/channel.hpp"

namespace godwit::migrate {

namespace {

/// One address space. A process that forks while it is owed pages becomes two, both served from the same pages of the source.
struct Space {
  SpaceId source = 0;  ///< whose pages at the source
  kernel::Userfaultfd fault;
  PageSet owed;        ///< by address here
  std::vector<std::pair<Range, std::int64_t>> moved;  ///< mremap: address here minus address at the source, newest last
  [[nodiscard]] std::uint64_t at_source(std::uint64_t address) const {
    for (auto move = moved.rbegin(); move != moved.rend(); ++move)
      if (address >= move->first.begin && address < move->first.end) return address - static_cast<std::uint64_t>(move->second);
    return address;
  }
};

}  // namespace

struct Pager::Parts {
  Fd reference;
  Fd wake;  ///< eventfd: the end
  std::mutex mutex;  ///< guards the spaces, the order of events, and what is put in place: an event is read and obeyed in one piece
  std::deque<Space> spaces;
  std::jthread thread;
  bool ending = false;

  /// Puts owed pages of one range in place. The mutex is held.
  Result<void> place(Space& space, std::uint64_t address, const std::uint8_t* data, std::uint64_t size) {
    for (const auto& run : space.owed.runs({address, address + size})) {
      for (std::uint64_t at = run.begin; at < run.end;) {
        auto copied = data != nullptr ? space.fault.copy(at, data + (at - address), run.end - at, true) : space.fault.zero(at, run.end - at, true);
        if (!copied) {
          if (copied.error().kind == ErrorKind::gone) return {};
          return std::unexpected(copied.error());
        }
        if (*copied == 0) {
          // The layout is changing (an event waits to be read) or a page is there: the fault, if there was one, is tried again.
          TRY(obey(space));
          if (!space.owed.contains(at)) break;
          copied = data != nullptr ? space.fault.copy(at, data + (at - address), page_size, true) : space.fault.zero(at, page_size, true);
          if (copied && *copied == 0) {
            (void)space.fault.wake(at, page_size);
            copied = page_size;
          }
          if (!copied) return std::unexpected(copied.error());
        }
        space.owed.remove({at, at + *copied});
        at += *copied;
      }
    }
    return {};
  }

  std::vector<std::pair<Space*, std::uint64_t>> faults;

  /// Reads and obeys all events of a space; faults are noted. The mutex is held.
  Result<void> obey(Space& space) {
    uffd_msg event;
    while (TRY(space.fault.read(event))) {
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
    return {};
  }

  Result<void> ask(Space& space, std::uint64_t address) {
    const PageHeader question{space.source, PageHeader::data, space.at_source(address), page_size};
    return send_all(reference.get(), &question, sizeof question);
  }

  struct Pending {
    Space* space;
    std::uint64_t address;
  };
  std::deque<Pending> pending;  ///< asked for, in the order of the answers

  Result<void> serve_faults() {
    for (auto& [space, address] : std::exchange(faults, {})) {
      if (!space->owed.contains(address)) {
        auto zeroed = space->fault.zero(address, page_size, true);
        if (!zeroed || *zeroed == 0) (void)space->fault.wake(address, page_size);
        continue;
      }
      if (std::ranges::any_of(pending, [&](const Pending& p) { return p.space == space && p.address == address; })) continue;
      TRY(ask(*space, address));
      pending.push_back({space, address});
    }
    return {};
  }

  Result<void> take_answer() {
    PageHeader header;
    TRY(receive_all(reference.get(), &header, sizeof header, std::chrono::minutes(10)));
    if (header.size > page_size || pending.empty()) return fail(ErrorKind::invalid, "an answer to no question");
    std::array<std::uint8_t, page_size> data{};
    TRY(receive_all(reference.get(), data.data(), header.size, std::chrono::minutes(10)));
    const Pending asked = pending.front();
    pending.pop_front();
    const std::scoped_lock lock(mutex);
    if (asked.space->owed.contains(asked.address)) return place(*asked.space, asked.address, data.data(), page_size);
    (void)asked.space->fault.wake(asked.address, page_size);
    return {};
  }

  Result<void> run() {
    for (;;) {
      std::vector<pollfd> waits{{wake.get(), POLLIN, 0}, {reference.get(), POLLIN, 0}};
      {
        const std::scoped_lock lock(mutex);
        for (auto& space : spaces) waits.push_back({space.fault.fd(), POLLIN, 0});
      }
      if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) return fail_errno("wait for faults");
      if (waits[0].revents != 0) return {};
      if ((waits[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0) TRY(take_answer());
      const std::scoped_lock lock(mutex);
      for (std::size_t i = 2; i < waits.size(); ++i)
        if ((waits[i].revents & POLLIN) != 0) TRY(obey(spaces[i - 2]));
      TRY(serve_faults());
    }
  }
};

Pager::Pager(Fd reference) : parts_(std::make_unique<Parts>()) {
  parts_->reference = std::move(reference);
  parts_->wake.reset(::eventfd(0, EFD_CLOEXEC));
}

Pager::~Pager() { (void)end(); }

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
  const std::scoped_lock lock(parts_->mutex);
  for (auto& candidate : parts_->spaces) {
    if (candidate.source != space) continue;
    if (candidate.moved.empty()) {
      TRY(parts_->place(candidate, address, static_cast<const std::uint8_t*>(data), size));
      continue;
    }
    // Page by page where the program has moved something since.
    for (std::uint64_t at = 0; at < size; at += page_size) {
      const auto* from = data != nullptr ? static_cast<const std::uint8_t*>(data) + at : nullptr;
      if (candidate.at_source(address + at) == address + at) TRY(parts_->place(candidate, address + at, from, page_size));
      for (const auto& [range, difference] : candidate.moved) {
        const auto here = address + at + static_cast<std::uint64_t>(difference);
        if (here >= range.begin && here < range.end && candidate.at_source(here) == address + at) TRY(parts_->place(candidate, here, from, page_size));
      }
    }
  }
  return {};
}

std::uint64_t Pager::owed_pages() {
  const std::scoped_lock lock(parts_->mutex);
  std::uint64_t pages = 0;
  for (const auto& space : parts_->spaces) pages += space.owed.pages();
  return pages;
}

std::vector<int> Pager::descriptors() const {
  std::vector<int> found;
  for (const auto& space : parts_->spaces) found.push_back(space.fault.fd());
  return found;
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
