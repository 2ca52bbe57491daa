#include <sys/eventfd.h>
#include <unistd.h>

#include <limits>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

struct State {
  std::uint64_t count = 0;
  bool semaphore = false;
  int flags = 0;
  MSGPACK_DEFINE_MAP(count, semaphore, flags)
};

bool matches(const Descriptor& descriptor) {
  return is_anonymous(descriptor.link, "[eventfd]");
}

// Counters that the kernel itself signals (KVM, aio, io_uring) can stand at the maximum, which write(2) can't reach.
constexpr std::uint64_t writable_maximum = std::numeric_limits<std::uint64_t>::max() - 1;

Result<State> capture(const Descriptor& descriptor, Source&) {
  const std::string info = TRY(read_info(descriptor.fd));
  const auto count = info_number(info, "eventfd-count", 16);
  const auto semaphore = info_number(info, "eventfd-semaphore");
  if (!count || !semaphore) return fail(ErrorKind::refused, "fdinfo of an eventfd has no count or mode (Linux 6.5)");
  return State{.count = *count, .semaphore = *semaphore != 0, .flags = descriptor.flags};
}

Result<Fd> build(const State& state, Destination&) {
  Fd fd{::eventfd(0, EFD_CLOEXEC | (state.semaphore ? EFD_SEMAPHORE : 0))};
  if (!fd) return fail_errno("eventfd");
  const std::uint64_t count = std::min(state.count, writable_maximum);
  if (count != 0 && ::write(fd.get(), &count, sizeof count) != sizeof count)
    return fail_errno("set an eventfd to {}", count);
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

}  // namespace

const Kind eventfd_kind{.name = "eventfd",
                        .matches = matches,
                        .preflight = nothing_to_preflight,
                        .capture = captures<State, capture>,
                        .build = builds<State, build>,
                        .attach = nothing_to_attach,
                        .open = nothing_to_open};

}  // namespace godwit::objects
