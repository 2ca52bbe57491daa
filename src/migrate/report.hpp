#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "control/ownership.hpp"
#include "image/codec.hpp"

namespace godwit::migrate {

/// One stretch of time with a name: a phase of the migration, or one cause within the freeze.
struct Span {
  std::string name;
  std::uint64_t us = 0;
  MSGPACK_DEFINE_MAP(name, us)
};

/// One round of copying.
struct Round {
  std::uint64_t pages = 0;       ///< sent with content
  std::uint64_t zero_pages = 0;  ///< found to be zero: no content on the wire
  std::uint64_t bytes = 0;
  std::uint64_t us = 0;
  MSGPACK_DEFINE_MAP(pages, zero_pages, bytes, us)
};

/// What a node still has to do for a pod that has left. Each has a reason and an end.
struct Residual {
  std::string kind;  ///< "pages", "frames", "log", "processes"
  std::string reason;
  std::string ends;  ///< when it is over
  MSGPACK_DEFINE_MAP(kind, reason, ends)
};

/// Where a migration is.
struct Progress {
  std::string phase;  ///< negotiate, preflight, prepare, precopy, freeze, restart, drain, done
  std::uint32_t round = 0;
  std::uint64_t pages_sent = 0;
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_per_second = 0;
  std::uint64_t bytes_left = 0;
  MSGPACK_DEFINE_MAP(phase, round, pages_sent, bytes_sent, bytes_per_second, bytes_left)
};

/// What happened, in numbers that were measured.
struct Report {
  std::string pod, source, destination;
  std::string strategy;  ///< what was done; `asked` is what was asked for
  std::string asked;
  bool moved = false;
  std::string error;            ///< why not, when not
  std::uint64_t freeze_us = 0;  ///< first thread stopped until the last one runs and the network is open
  std::uint64_t total_us = 0;
  std::uint64_t bytes_sent = 0;
  std::vector<Round> rounds;
  std::vector<std::uint64_t> pauses_us;  ///< every earlier stop of any thread
  std::vector<Span> phases;              ///< the whole migration
  std::vector<Span> freeze;              ///< the freeze, itemised by cause; source and destination
  std::vector<Residual> residuals;       ///< what is still owed
  std::vector<std::string> refusals;     ///< what preflight found
  std::uint64_t expected_freeze_us = 0;  ///< dry run: estimate from what preflight counted
  std::uint64_t expected_bytes = 0;
  std::string expected_from;  ///< dry run: what the estimate was made from
  /// Of the copy here: `there` from the commit on, whatever happened then; none when it was in doubt and left so. Not
  /// told to others.
  std::optional<control::Fate> fate = control::Fate::here;
  bool owing = false;  ///< the destination hasn't all pages yet. Not told either
  MSGPACK_DEFINE_MAP(pod, source, destination, strategy, asked, moved, error, freeze_us, total_us, bytes_sent, rounds,
                     pauses_us, phases, freeze, residuals, refusals, expected_freeze_us, expected_bytes, expected_from)
};

}  // namespace godwit::migrate
