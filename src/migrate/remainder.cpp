#include "migrate/remainder.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "kernel/procfs.hpp"
#include "migrate/channel.hpp"
#include "migrate/tree.hpp"

namespace godwit::migrate {

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
    if (!memory) continue;
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
      const ssize_t got = ::pread(memory->second.get(), to + done, range.size(), static_cast<off_t>(range.begin));
      if (got <= 0) break;
      done += static_cast<std::size_t>(got) / page_size * page_size;
    }
    return done;
  });
}

}  // namespace godwit::migrate
