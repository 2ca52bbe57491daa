#include "migrate/remainder.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernel/procfs.hpp"
#include "migrate/channel.hpp"
#include "migrate/tree.hpp"

namespace godwit::migrate {

namespace {

/// Reads memory of a frozen process: how many bytes, in whole pages. 0 is final: the process has been killed, or the
/// page can't be read. What might be no more than a lack of memory here (the kernel says EIO for that, too) is tried
/// again for a second.
std::size_t read_frozen(int memory, Range range, std::uint8_t* to) {
  constexpr int attempts = 20;
  for (int attempt = 1;; ++attempt) {
    const ssize_t got = ::pread(memory, to, range.size(), static_cast<off_t>(range.begin));
    if (got >= 0) return static_cast<std::size_t>(got) / page_size * page_size;
    if (attempt == attempts) return 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace

Result<bool> answer_pages(Stream& connection, const ReadPages& read) {
  const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(max_piece);
  for (;;) {
    PageHeader asked;
    TRY(receive_all(connection, &asked, sizeof asked, std::chrono::hours(24)));
    if (asked.kind == PageHeader::drained) return true;
    if (asked.kind != PageHeader::data || asked.size == 0 || asked.size > max_piece)
      return fail(ErrorKind::invalid, "no question for pages");
    const Range wanted{asked.address, asked.address + asked.size};
    asked.size = read(asked.space, {&wanted, 1}, buffer.get());
    // One page is what a fault waits for: it goes as it is.
    const bool zero = asked.size > page_size &&
                      std::all_of(buffer.get(), buffer.get() + asked.size, [](std::uint8_t byte) { return byte == 0; });
    if (zero) asked.kind = PageHeader::zero;
    const std::array<iovec, 2> answer{iovec{&asked, sizeof asked}, iovec{buffer.get(), zero ? 0 : asked.size}};
    TRY(send_all(connection, answer));
  }
}

Result<std::unique_ptr<Remainder>> Remainder::of(pod::Pod& pod) {
  auto remainder = std::make_unique<Remainder>();
  for (const auto& ids : TRY(read_tree(pod.init()))) {
    if (ids.zombie) continue;
    auto memory = kernel::open_file(ids.body(), "mem", O_RDONLY);
    if (!memory && (memory.error().kind == ErrorKind::gone || memory.error().code == ENOENT)) continue;
    if (!memory) return std::unexpected(memory.error());
    remainder->memory_.emplace(static_cast<SpaceId>(ids.pod.value), std::move(*memory));
  }
  if (remainder->memory_.empty()) return fail(ErrorKind::gone, "nothing of {} is left here", pod.spec().name);
  return remainder;
}

Result<bool> Remainder::serve(Stream& connection) const {
  return answer_pages(connection, [this](SpaceId space, std::span<const Range> ranges, std::uint8_t* to) {
    const auto memory = memory_.find(space);
    if (memory == memory_.end()) return std::size_t{0};
    std::size_t done = 0;
    for (const auto& range : ranges) {
      const auto got = read_frozen(memory->second.get(), range, to + done);
      done += got;
      if (got < range.size()) break;
    }
    return done;
  });
}

}  // namespace godwit::migrate
