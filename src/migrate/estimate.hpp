#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"
#include "migrate/strategy.hpp"
#include "pod/pod.hpp"

/// What a migration would take, told from what can be counted while the pod runs: for a dry run.
namespace godwit::migrate {

/// All of it measured.
struct Survey {
  std::uint64_t processes = 0, threads = 0, descriptors = 0, sockets = 0, mappings = 0;
  std::uint64_t resident_pages = 0;  ///< that would travel
  std::uint64_t sampled_pages = 0;   ///< of them, compared with themselves after `sample_us`
  std::uint64_t changed_pages = 0;   ///< of the sampled
  std::uint64_t sample_us = 0;
  std::uint64_t link_bytes_per_second = 0;  ///< of the last migration there, or of a probe
  std::uint64_t round_trip_us = 0;
};

/// Resident memory that is written again and again, in pages per second. Bounded by what is resident: a page that is
/// written twice in the time of the sample counts once.
[[nodiscard]] std::uint64_t dirty_pages_per_second(const Survey&);

struct Estimate {
  std::uint64_t freeze_us = 0;
  std::uint64_t bytes = 0;
};

/// An estimate, not a promise: rounds of copying are played through with the survey's numbers and the rules of
/// `decide`, and what the freeze has to do besides costs what it was seen to cost on the machines that godwit was made
/// on. Never 0.
[[nodiscard]] Estimate estimate(Strategy, const Survey&);

/// Counts, and compares a sample of pages with themselves a tenth of a second later: a page that is written with what
/// it held already isn't seen. Nothing in the pod is stopped or changed. The link's numbers are left 0.
Result<Survey> survey(pod::Pod&);

/// One line for people.
[[nodiscard]] std::string describe(const Survey&);

}  // namespace godwit::migrate
