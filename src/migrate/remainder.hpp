#pragma once

#include <map>
#include <memory>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "base/stream.hpp"
#include "migrate/page_stream.hpp"
#include "pod/pod.hpp"

namespace godwit::migrate {

/// What a source says first to a destination that comes back for pages.
enum class PagesLeft : std::uint8_t {
  lost = 0,   ///< it has nothing of that migration: the machine was restarted, or an operator has ended it
  here = 1,   ///< questions follow, PageHeader::data, and each is answered by data or zero
  later = 2,  ///< it isn't known yet: the migration is about to end, or the store has to be asked
};

/// Answers questions for pages on one connection until it ends: by as much of the beginning as can be read, and when
/// the first page can't be, by none, which means that it never can. True when the other side said that it has all.
Result<bool> answer_pages(Stream&, const ReadPages&);

/// What a pod that runs elsewhere by now has left here: its frozen processes, whose memory the destination hasn't
/// fetched as a whole. Whatever was under way before, whoever asks gets what stands in it; it doesn't change any more.
class Remainder {
 public:
  /// `gone` when none of its processes is left. Any other error says nothing about them: it may go better later.
  static Result<std::unique_ptr<Remainder>> of(pod::Pod&);

  /// Any thread; several at once. True when the destination has all.
  Result<bool> serve(Stream&) const;

 private:
  std::map<SpaceId, Fd> memory_;  ///< /proc/PID/mem, by pid in the pod
};

}  // namespace godwit::migrate
