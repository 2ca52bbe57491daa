// What a pod's init hands back to the next daemon, and what it says to a client: the log of owed pages, and the frames
// of a pod's output.
#include <sys/mman.h>

#include "fuzz.hpp"
#include "migrate/owed_log.hpp"
#include "pod/log_segments.hpp"

namespace {

using namespace godwit;
using migrate::OwedLog;

void owed(BytesView input) {
  Fd file(::memfd_create("fuzz", MFD_CLOEXEC));
  fuzz::require(::write(file.get(), input.data(), input.size()) == static_cast<ssize_t>(input.size()), "written");
  auto log = OwedLog::take(std::move(file));
  if (!log) return;
  const auto entries = log->read();
  if (!entries) return;
  fuzz::require(entries->size() == input.size() / sizeof(OwedLog::Entry), "every whole entry is read");
  for (const auto& entry : *entries) fuzz::require(entry.space < entries->size(), "an address space that can be");
}

void output(BytesView input) {
  Bytes left(input.begin(), input.end()), again;
  pod::Frame frame;
  for (;;) {
    const auto taken = pod::take_frame(left, frame);
    if (!taken || !*taken) break;
    pod::append_frame(again, frame.kind, frame.bytes);
  }
  fuzz::require(again.size() + left.size() == input.size() && std::equal(again.begin(), again.end(), input.begin()),
                "frames are written as they were read");
}

void one(BytesView input) {
  owed(input);
  output(input);
}

std::vector<Bytes> seeds() {
  const std::vector<OwedLog::Entry> entries{{OwedLog::Entry::made, 0, 7},
                                            {OwedLog::Entry::owed, 0, 0x1000, 0x9000},
                                            {OwedLog::Entry::removed, 0, 0x2000, 0x3000},
                                            {OwedLog::Entry::moved, 0, 0x4000, 0x5000, 0x8000000},
                                            {OwedLog::Entry::forked, 0, 1}};
  const auto* raw = reinterpret_cast<const std::uint8_t*>(entries.data());
  Bytes log(raw, raw + entries.size() * sizeof(OwedLog::Entry)), frames;
  pod::append_frame(frames, pod::FrameKind::output, fuzz::bytes_of("hello\n"));
  pod::append_frame(frames, pod::FrameKind::exit, Bytes(4));
  return {log, frames};
}

}  // namespace

FUZZ_TARGET(one, seeds)
