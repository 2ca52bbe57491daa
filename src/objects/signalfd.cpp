#include <sys/syscall.h>
#include <unistd.h>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

// The signals themselves are pending in processes, not in the descriptor: they move with the threads.
struct State {
  std::uint64_t mask = 0;
  int flags = 0;
  MSGPACK_DEFINE_MAP(mask, flags)
};

bool matches(const Descriptor& descriptor) {
  return is_anonymous(descriptor.link, "[signalfd]");
}

Result<State> capture(const Descriptor& descriptor, Source&) {
  const auto mask = info_number(TRY(read_info(descriptor.fd)), "sigmask", 16);
  if (!mask) return fail(ErrorKind::refused, "fdinfo of a signalfd has no mask");
  return State{.mask = *mask, .flags = descriptor.flags};
}

Result<Fd> build(const State& state, Destination&) {
  constexpr int close_on_exec =
      02000000;  // SFD_CLOEXEC; the C library's call takes a larger sigset_t than the kernel's
  Fd fd{static_cast<int>(::syscall(SYS_signalfd4, -1, &state.mask, sizeof state.mask, close_on_exec))};
  if (!fd) return fail_errno("signalfd");
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

}  // namespace

const Kind signalfd_kind{.name = "signalfd",
                         .matches = matches,
                         .preflight = nothing_to_preflight,
                         .capture = captures<State, capture>,
                         .build = builds<State, build>,
                         .attach = nothing_to_attach,
                         .open = nothing_to_open};

}  // namespace godwit::objects
