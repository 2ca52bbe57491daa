// What comes in on a migration's control connection, from either side: frames, and the message in each.
#include "fuzz.hpp"
#include "migrate/channel.hpp"
#include "migrate/page_stream.hpp"
#include "migrate/wire.hpp"
#include "pod/upper_record.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using namespace godwit;
namespace wire = migrate::wire;

constexpr std::size_t head_size = 5;

void message(wire::Type type, BytesView payload) {
  switch (type) {
    case wire::Type::hello:
      fuzz::round_trip<wire::Hello>(payload);
      break;
    case wire::Type::refused:
      fuzz::round_trip<wire::Refused>(payload);
      break;
    case wire::Type::clock:
      fuzz::round_trip<wire::Clock>(payload);
      break;
    case wire::Type::prepare:
      fuzz::round_trip<wire::Prepare>(payload);
      break;
    case wire::Type::files:
      if (const auto files = fuzz::round_trip<wire::Files>(payload))
        fuzz::round_trip<std::vector<pod::UpperRecord>>(files->message);
      break;
    case wire::Type::round:
      fuzz::round_trip<wire::Round>(payload);
      break;
    case wire::Type::last:
      if (const auto last = fuzz::round_trip<wire::Last>(payload))
        (void)migrate::PageReceiver::decode(last->pages,
                                            [](auto, auto, const void*, std::size_t) -> Result<void> { return {}; });
      break;
    case wire::Type::state:
      fuzz::round_trip<wire::State>(payload);
      break;
    case wire::Type::objects:
      fuzz::round_trip<wire::Objects>(payload);
      break;
    case wire::Type::rebuilt:
      fuzz::round_trip<wire::Spans>(payload);
      break;
    case wire::Type::go:
      fuzz::round_trip<wire::Go>(payload);
      break;
    case wire::Type::frames:
      fuzz::round_trip<wire::Frames>(payload);
      break;
    case wire::Type::running:
      fuzz::round_trip<wire::Running>(payload);
      break;
    case wire::Type::log:
      fuzz::round_trip<wire::Log>(payload);
      break;
    case wire::Type::execution:
      fuzz::round_trip<pod::Execution>(payload);
      break;
    case wire::Type::streams_end:
      fuzz::round_trip<wire::StreamsEnd>(payload);
      break;
    case wire::Type::abort:
      fuzz::round_trip<wire::Text>(payload);
      break;
    case wire::Type::freezing:
      fuzz::round_trip<wire::Freezing>(payload);
      break;
    case wire::Type::objects_ahead:
      fuzz::round_trip<wire::ObjectsAhead>(payload);
      break;
    case wire::Type::objects_kept:
      fuzz::round_trip<wire::ObjectsKept>(payload);
      break;
    case wire::Type::welcome:
    case wire::Type::ready:
    case wire::Type::done:
    case wire::Type::drained:
    case wire::Type::bye:
    case wire::Type::probe:
      break;
  }
}

void one(BytesView input) {
  fuzz::Wire wire(input);
  migrate::Channel channel(std::move(wire.stream));
  while (const auto next = channel.receive(std::chrono::seconds(1)))
    message(static_cast<wire::Type>(next->type), next->payload);
}

Bytes frame(wire::Type type, BytesView payload) {
  const auto length = static_cast<std::uint32_t>(payload.size());
  Bytes bytes(head_size);
  std::memcpy(bytes.data(), &length, sizeof length);
  bytes[4] = static_cast<std::uint8_t>(type);
  fuzz::append(bytes, payload);
  return bytes;
}
template <typename T>
Bytes frame(wire::Type type, const T& value) {
  return frame(type, BytesView(image::pack(value)));
}

std::vector<Bytes> seeds() {
  const wire::Process process{.pid = PodPid{7},
                              .parent = PodPid{1},
                              .group = PodPid{7},
                              .session = PodPid{7},
                              .name = "web",
                              .threads = {PodPid{7}, PodPid{8}},
                              .layout = {{.begin = 0x400000, .end = 0x401000, .protection = 5, .path = "/bin/web"},
                                         {.begin = 0x7f0000000000, .end = 0x7f0000010000, .protection = 3}}};
  const wire::Round round{.number = 1, .processes = {process}, .objects = {{.key = 3, .name = "shm", .size = 4096}}};
  const objects::Holder holder{PodPid{7}, 3, true};
  const pod::UpperRecord record{.action = "make", .path = "var/log", .mode = 040755};
  const pod::UpperRecord content{.action = "data", .path = "var/log/x", .bytes = fuzz::bytes_of("content")};
  Bytes pages(sizeof(migrate::PageHeader));
  const migrate::PageHeader zeros{7, migrate::PageHeader::zero, 0x7f0000000000, page_size};
  std::memcpy(pages.data(), &zeros, sizeof zeros);
  const pod::Spec spec{.name = "web", .id = "1f", .home = "a", .program = {.arguments = {"web", "-v"}}};

  std::vector<Bytes> all{
      frame(wire::Type::hello, wire::Hello{.from = "a",
                                           .spec = spec,
                                           .machine = {.kernel = "6.18", .vdso = "ab", .cpu_flags = {"avx", "sse"}},
                                           .files = {{.path = "/bin/web"}},
                                           .strategy = "auto"}),
      frame(wire::Type::welcome, BytesView{}),
      frame(wire::Type::refused, wire::Refused{{"no room"}}),
      frame(wire::Type::clock, wire::Clock{1, 2}),
      frame(wire::Type::prepare,
            wire::Prepare{{1, 2}, 3, {.pod = "web", .id = "1f", .owner = "a"}, {{.id = "1f", .process = 8}}}),
      frame(wire::Type::files, wire::Files{0, image::pack(std::vector{record, content})}),
      frame(wire::Type::round, round),
      frame(wire::Type::last, wire::Last{.round = round,
                                         .absent = {{PodPid{7}, {0x1000, 0x2000}}},
                                         .owed = {{PodPid{7}, {0x3000, 0x4000, 0x5000, 0x6000}}},
                                         .pages = pages}),
      frame(wire::Type::state,
            wire::State{{{.process = {}, .threads = {objects::ThreadState{}}, .close_on_exec = {3, 4}}}, PodPid{9}}),
      frame(wire::Type::objects, wire::Objects{{{"eventfd", fuzz::bytes_of("state"), {}, {holder}}}}),
      frame(wire::Type::rebuilt, wire::Spans{{{"layout", 12}}}),
      frame(wire::Type::go, wire::Go{{fuzz::bytes_of("frame"), {}}, true}),
      frame(wire::Type::running, wire::Running{1, {{"open", 3}}}),
      frame(wire::Type::log, wire::Log{"00000000000000000001", 0, fuzz::bytes_of("line\n")}),
      frame(wire::Type::execution,
            pod::Execution{.id = "1f", .process = 8, .begin = 7, .output = {1, 2, 0, 0, 0, 'h', 'i'}}),
      frame(wire::Type::streams_end, wire::StreamsEnd{true}),
      frame(wire::Type::abort, wire::Text{"why"}),
      frame(wire::Type::freezing, wire::Freezing{.first = PodPid{7},
                                                 .processes = {{PodPid{7}, {{PodPid{7}, {}, true}}}},
                                                 .neighbours = {{"10.0.0.1", "02:00:00:00:00:01", false}}}),
      frame(wire::Type::objects_ahead, wire::ObjectsAhead{{objects::AheadImage{}}}),
      frame(wire::Type::objects_kept, wire::ObjectsKept{{objects::Kept{}}}),
  };
  Bytes several = all[1];
  fuzz::append(several, all[3]);
  fuzz::append(several, all[12]);
  all.push_back(several);
  return all;
}

}  // namespace

FUZZ_TARGET(one, seeds)

/// Mostly the first message is changed and its length said right; sometimes the bytes are changed as they come.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  std::uint32_t length = 0;
  if (size >= head_size) std::memcpy(&length, data, sizeof length);
  if (seed % 8 == 0 || size <= head_size || length == 0 || length > size - head_size)
    return LLVMFuzzerMutate(data, size, most);
  const Bytes rest(data + head_size + length, data + size);
  const std::size_t room = most - head_size;
  length = static_cast<std::uint32_t>(LLVMFuzzerMutate(data + head_size, length, room));
  std::memcpy(data, &length, sizeof length);
  const std::size_t kept = std::min(rest.size(), room - length);
  std::copy_n(rest.begin(), kept, data + head_size + length);
  return head_size + length + kept;
}
