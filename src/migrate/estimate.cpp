#include "migrate/estimate.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>
#include <thread>

#include "kernel/memory.hpp"
#include "kernel/pagemap.hpp"
#include "kernel/procfs.hpp"
#include "migrate/page_set.hpp"
#include "migrate/tree.hpp"

namespace godwit::migrate {

namespace {

/// Within the freeze, by cause (us): medians of what the reports' own items said on two shared cores.
constexpr double base_us = 1500, process_us = 400, thread_us = 60, descriptor_us = 8, socket_us = 30, mapping_us = 1.5,
                 scan_us_per_page = 0.002;
/// Said one after the other in the freeze: objects, pages, state, answer, commit, go.
constexpr double round_trips = 4;
constexpr double bytes_per_page = static_cast<double>(page_size) + 8;
constexpr std::uint64_t most_samples = 4096;
constexpr auto sample_time = std::chrono::milliseconds(100);

double seconds_for(double pages, const Survey& facts) {
  return pages * bytes_per_page / static_cast<double>(std::max<std::uint64_t>(facts.link_bytes_per_second, 1));
}

/// How the copying ends: pages sent while it runs, and dirty when it stops.
struct Played {
  double sent = 0, left = 0;
  Next next = Next::freeze;
};

Played play(Strategy strategy, const Survey& facts) {
  const auto resident = static_cast<double>(facts.resident_pages);
  if (!copies_before(strategy)) return {0, resident, decide(strategy, {})};
  const auto rate = static_cast<double>(dirty_pages_per_second(facts));
  Played played{.left = resident};
  double before = 0, in_vain = 0;
  for (std::uint32_t round = 1;; ++round) {
    const double sending = played.left;
    played.sent += sending;
    if (round > 1) in_vain += sending;
    played.left =
        std::min(resident, rate * (seconds_for(sending, facts) + static_cast<double>(facts.round_trip_us) / 1e6));
    played.next = decide(strategy, {.round = round,
                                    .resident = facts.resident_pages,
                                    .sent = static_cast<std::uint64_t>(sending),
                                    .in_vain = static_cast<std::uint64_t>(in_vain + played.left),
                                    .dirty = static_cast<std::uint64_t>(played.left),
                                    .dirty_before = static_cast<std::uint64_t>(before)});
    before = played.left;
    if (played.next != Next::again) return played;
  }
}

struct Sample {
  HostPid process;
  RemoteAddress address = 0;
  std::size_t hash = 0;
};

/// False when the page can't be read (any more).
bool hash_page(Sample& sample) {
  std::array<char, page_size> page;
  const auto got = kernel::read_memory(sample.process, sample.address, page.data(), page.size());
  if (!got || *got != page.size()) return false;
  sample.hash = std::hash<std::string_view>{}({page.data(), page.size()});
  return true;
}

void count_process(const ProcessIds& ids, Survey& facts, std::vector<std::pair<HostPid, kernel::PageRange>>& resident) {
  ++facts.processes;
  facts.threads += ids.threads.size();
  for (const int number : kernel::list_descriptors(ids.host).value_or(std::vector<int>{})) {
    ++facts.descriptors;
    const auto link = kernel::read_link(ids.host, fmt::format("fd/{}", number));
    if (link && link->starts_with("socket:")) ++facts.sockets;
  }
  const auto maps = kernel::read_maps(ids.body());
  const auto pagemap = kernel::Pagemap::open(ids.body());
  if (!maps || !pagemap) return;
  for (const auto& mapping : *maps) {
    ++facts.mappings;
    if (mapping.name.starts_with("[v")) continue;  // the kernel's own
    std::vector<kernel::PageRange> found;
    // Of a file's private mapping only what is the process's own travels; a zero page has no content.
    const kernel::PageQuery query{.mask = kernel::page::present | kernel::page::file | kernel::page::zero_frame,
                                  .inverted = kernel::page::file | kernel::page::zero_frame};
    const kernel::PageQuery shared{.mask = kernel::page::present};
    const bool memory_object = mapping.shared && mapping.name.starts_with("/dev/shm");
    if (mapping.shared && !memory_object && mapping.inode != 0 && !mapping.name.starts_with("/memfd:") &&
        !mapping.name.starts_with("/dev/zero"))
      continue;
    if (!pagemap->scan(mapping.begin, mapping.end, mapping.shared ? shared : query, found)) continue;
    for (const auto& range : found) {
      facts.resident_pages += range.size() / page_size;
      if ((mapping.protection & PROT_WRITE) != 0) resident.emplace_back(ids.body(), range);
    }
  }
}

std::vector<Sample> choose(const std::vector<std::pair<HostPid, kernel::PageRange>>& resident) {
  std::uint64_t pages = 0;
  for (const auto& [process, range] : resident) pages += range.size() / page_size;
  const std::uint64_t step = std::max<std::uint64_t>(1, pages / most_samples);
  std::vector<Sample> samples;
  std::uint64_t skip = step / 2;
  for (const auto& [process, range] : resident) {
    const std::uint64_t here = range.size() / page_size;
    std::uint64_t at = skip;
    for (; at < here; at += step) samples.push_back({process, range.begin + at * page_size});
    skip = at - here;
  }
  return samples;
}

}  // namespace

std::uint64_t dirty_pages_per_second(const Survey& facts) {
  if (facts.sampled_pages == 0 || facts.sample_us == 0) return 0;
  const double part = static_cast<double>(facts.changed_pages) / static_cast<double>(facts.sampled_pages);
  return static_cast<std::uint64_t>(part * static_cast<double>(facts.resident_pages) * 1e6 /
                                    static_cast<double>(facts.sample_us));
}

Estimate estimate(Strategy strategy, const Survey& facts) {
  const Played played = play(strategy, facts);
  const auto of = [](std::uint64_t count, double us) { return static_cast<double>(count) * us; };
  double freeze = base_us + of(facts.processes, process_us) + of(facts.threads, thread_us) +
                  of(facts.descriptors, descriptor_us) + of(facts.sockets, socket_us) + of(facts.mappings, mapping_us) +
                  of(facts.resident_pages, scan_us_per_page) + of(facts.round_trip_us, round_trips);
  // What is fetched on reference travels after the restart.
  const bool in_freeze = played.next == Next::freeze || strategy == Strategy::eager_dirty;
  if (in_freeze) freeze += seconds_for(played.left, facts) * 1e6;
  const double bytes = (played.sent + played.left) * bytes_per_page;
  return {std::max<std::uint64_t>(1, static_cast<std::uint64_t>(freeze)),
          std::max<std::uint64_t>(1, static_cast<std::uint64_t>(bytes))};
}

Result<Survey> survey(pod::Pod& pod) {
  Survey facts;
  std::vector<std::pair<HostPid, kernel::PageRange>> writable;
  for (const auto& ids : TRY(read_tree(pod.init())))
    if (!ids.zombie) count_process(ids, facts, writable);
  auto samples = choose(writable);
  std::erase_if(samples, [](Sample& sample) { return !hash_page(sample); });
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(sample_time);
  for (auto& sample : samples) {
    const auto before = sample.hash;
    // Gone counts as changed: its place would be looked at again.
    if (!hash_page(sample) || sample.hash != before) ++facts.changed_pages;
  }
  facts.sampled_pages = samples.size();
  facts.sample_us = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - began).count());
  // What isn't writable isn't dirtied: the sample speaks for the writable part only.
  std::uint64_t pages = 0;
  for (const auto& [process, range] : writable) pages += range.size() / page_size;
  if (facts.resident_pages > 0 && pages < facts.resident_pages)
    facts.sampled_pages = facts.sampled_pages * facts.resident_pages / std::max<std::uint64_t>(pages, 1);
  return facts;
}

std::string describe(const Survey& facts) {
  return fmt::format(
      "{} processes, {} threads, {} descriptors ({} sockets), {} resident pages of which {} are written per second, {} "
      "MB/s and {} us to the other node",
      facts.processes, facts.threads, facts.descriptors, facts.sockets, facts.resident_pages,
      dirty_pages_per_second(facts), facts.link_bytes_per_second / 1'000'000, facts.round_trip_us);
}

}  // namespace godwit::migrate
