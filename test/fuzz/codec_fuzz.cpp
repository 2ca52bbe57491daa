// Feeds the decoder of every state and message with rubbish: whatever comes in, it is refused or understood within its
// limits, and what was understood is written and read back the same.
//
//   codec-fuzz [SECONDS] [SEED]      own mutations, of messages that are right; bounded
//   with -fsanitize=fuzzer           libFuzzer drives LLVMFuzzerTestOneInput
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "image/codec.hpp"
#include "migrate/migrate.hpp"
#include "migrate/report.hpp"
#include "migrate/wire.hpp"
#include "objects/content.hpp"
#include "objects/credentials.hpp"
#include "objects/directory.hpp"
#include "objects/interrupted.hpp"
#include "objects/kind.hpp"
#include "objects/locks.hpp"
#include "objects/pipe.hpp"
#include "objects/process_state.hpp"
#include "objects/scheduling.hpp"
#include "objects/socket_options.hpp"
#include "objects/tcp_state.hpp"
#include "objects/thread_state.hpp"
#include "objects/timers.hpp"
#include "pod/directory.hpp"
#include "pod/init_protocol.hpp"
#include "pod/manifest.hpp"
#include "pod/spec.hpp"
#include "pod/upper_record.hpp"
#include "store/store.hpp"

namespace {

using namespace godwit;

/// Small enough that a thousand messages a second fit, large enough for every seed.
constexpr image::Limits limits{.bytes = 64 * KiB, .items = 4096, .blob = 32 * KiB, .depth = 16};

template <typename T>
void decode(BytesView bytes) {
  auto value = image::unpack<T>(bytes, limits);
  if (!value) return;
  const Bytes once = image::pack(*value);
  auto again = image::unpack<T>(BytesView(once), {});
  if (!again || image::pack(*again) != once) {
    std::fprintf(stderr, "not the same when read back: %s\n", __PRETTY_FUNCTION__);
    std::abort();
  }
}
template <typename T>
Bytes example() {
  return image::pack(T{});
}

struct Type {
  void (*decode)(BytesView);
  Bytes (*example)();
};
template <typename... T>
std::vector<Type> types_of() {
  return {Type{decode<T>, example<T>}...};
}
const std::vector<Type>& types() {
  static const auto all =
      types_of<migrate::Options, migrate::Progress, migrate::Report, objects::Content, objects::Credentials,
               objects::FileLock, objects::Holder, objects::Image, objects::Interrupted, objects::PipeContent,
               objects::ProcessState, objects::ReadingPosition, objects::Scheduling, objects::SocketOptions,
               objects::ThreadState, objects::Timers, objects::tcp::State, pod::Birth, pod::Clocks, pod::Event,
               pod::ManifestEntry, pod::Program, pod::Record, pod::Request, pod::Response, pod::Setup, pod::Spec,
               pod::UpperRecord, store::Record, migrate::wire::Hello, migrate::wire::Refused, migrate::wire::Clock,
               migrate::wire::Prepare, migrate::wire::Process, migrate::wire::Round, migrate::wire::Ranges,
               migrate::wire::Last, migrate::wire::ProcessImage, migrate::wire::State, migrate::wire::Objects,
               migrate::wire::Spans, migrate::wire::Files, migrate::wire::Frames, migrate::wire::Running,
               migrate::wire::Log, migrate::wire::Text>();
  return all;
}

using Random = std::mt19937_64;

Bytes mutate(Bytes bytes, Random& random) {
  const auto below = [&](std::size_t limit) { return limit == 0 ? 0 : random() % limit; };
  // Heads of MessagePack: lengths that lie, other types, deep nesting.
  static constexpr std::uint8_t heads[] = {0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xc4, 0xc5,
                                           0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcc, 0xcf, 0xd0, 0xd3, 0xd4, 0xd8,
                                           0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff, 0x00, 0x7f};
  for (std::size_t times = 1 + below(6); times > 0; times--) {
    const std::size_t at = below(bytes.size() + 1);
    switch (below(7)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<std::uint8_t>(random());
        break;
      case 1:
        if (at < bytes.size()) bytes[at] ^= static_cast<std::uint8_t>(1U << below(8));
        break;
      case 2:
        if (at < bytes.size()) bytes[at] = heads[below(sizeof heads)];
        break;
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), heads[below(sizeof heads)]);
        break;
      case 5: {
        const Bytes some(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end());
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size() + 1)), some.begin(),
                     some.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(some.size(), 64)));
        break;
      }
      default:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), below(40), heads[below(sizeof heads)]);
    }
  }
  return bytes;
}

}  // namespace

/// The first byte says which type the rest is given to.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  types()[data[0] % types().size()].decode(BytesView(data + 1, size - 1));
  return 0;
}

#ifndef GODWIT_LIBFUZZER
int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 5;
  const std::uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  Random random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::uint64_t inputs = 0;
  for (const Type& type : types()) type.decode(BytesView(type.example()));
  while (std::chrono::steady_clock::now() < end)
    for (int i = 0; i < 200; i++, inputs++) {
      const std::size_t which = random() % types().size();
      Bytes bytes = mutate(types()[random() % 8 == 0 ? random() % types().size() : which].example(), random);
      bytes.insert(bytes.begin(), static_cast<std::uint8_t>(which));
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(inputs));
  return 0;
}
#endif
