// State as data: whatever is said of a process, a thread, an object or a pod, in messages and in files. The first byte
// says as what the rest is read.
#include "fuzz.hpp"
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
#include "objects/unix_state.hpp"
#include "pod/directory.hpp"
#include "pod/init_protocol.hpp"
#include "pod/manifest.hpp"
#include "pod/spec.hpp"
#include "pod/upper_record.hpp"
#include "store/store.hpp"

namespace {

using namespace godwit;

struct Type {
  void (*decode)(BytesView);
  Bytes (*example)();
};
template <typename... T>
std::vector<Type> types_of() {
  return {Type{[](BytesView bytes) { fuzz::round_trip<T>(bytes); }, [] { return image::pack(T{}); }}...};
}
const std::vector<Type>& types() {
  static const auto all =
      types_of<objects::Image, objects::ProcessState, objects::ThreadState, objects::tcp::State, objects::Timers,
               objects::SocketOptions, objects::PipeContent, objects::Content, objects::Credentials, objects::FileLock,
               objects::Interrupted, objects::ReadingPosition, objects::Scheduling, pod::Birth, pod::Event, pod::Record,
               pod::Request, pod::Response, pod::Setup, pod::UpperRecord, pod::ManifestEntry, store::Record>();
  return all;
}

void one(BytesView input) {
  if (!input.empty()) types()[input[0] % types().size()].decode(input.subspan(1));
}

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  for (std::size_t i = 0; i < types().size(); ++i) {
    all.push_back({static_cast<std::uint8_t>(i)});
    fuzz::append(all.back(), types()[i].example());
  }
  return all;
}

}  // namespace

FUZZ_TARGET(one, seeds)
