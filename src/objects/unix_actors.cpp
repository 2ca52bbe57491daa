#include <sys/syscall.h>
#include <sys/un.h>

#include <array>

#include "kernel/pidfd.hpp"
#include "objects/unix_state.hpp"

/// What SO_PEERCRED remembers is done by the process that did it: the kernel takes the caller's id and user.
namespace godwit::objects::local {
namespace {

constexpr std::uint64_t unchanged = ~0ULL;

bool is_root(const Credentials& who) {
  return who.uid == 0 && who.gid == 0;
}

void become(kernel::Batch& batch, const Credentials& who) {
  if (is_root(who)) return;
  batch.call(SYS_setresgid, {unchanged, who.gid, unchanged});
  batch.call(SYS_setresuid, {unchanged, who.uid, unchanged});
  // Files are still reached as root.
  batch.call(SYS_setfsuid, {0});
}

void become_root(kernel::Batch& batch, const Credentials& again) {
  if (is_root(again)) return;
  batch.call(SYS_setresuid, {unchanged, 0, unchanged});
  batch.call(SYS_setresgid, {unchanged, 0, unchanged});
}

/// Whether the process has done it; false when there is none.
Result<bool> done_by_process(Result<void> outcome) {
  if (outcome) return true;
  if (outcome.error().kind == ErrorKind::not_found) return false;
  return std::unexpected(std::move(outcome).error());
}

Result<void> check(const kernel::Batch& batch, kernel::Batch::Call call, const std::string& what) {
  const long result = batch.result(call);
  if (result >= 0) return {};
  errno = static_cast<int>(-result);
  return fail_errno("{}", what);
}

/// One call on a descriptor of ours, whose number becomes its first argument.
Result<void> call_with(Stub& stub, int fd, const Credentials& as, const std::string& what, long number,
                       const std::function<std::array<std::uint64_t, 6>(kernel::Batch&)>& arguments) {
  auto batch = stub.batch();
  const auto got = batch.must("fetch a socket", SYS_pidfd_getfd,
                              {static_cast<std::uint64_t>(stub.builder()), static_cast<std::uint64_t>(fd), 0});
  become(batch, as);
  const auto call = batch.call(number, arguments(batch));
  batch.forward(got, call, 0);
  become_root(batch, as);
  batch.forward(got, batch.call(SYS_close, {0}), 0);
  TRY(stub.run(batch));
  return check(batch, call, what);
}

}  // namespace

Result<Pair> new_pair(int type, const Credentials& as, Destination& destination) {
  Pair pair;
  auto made = destination.as_process(as.pid, [&](Stub& stub) -> Result<void> {
    auto batch = stub.batch();
    const auto where = batch.space(sizeof(std::array<int, 2>));
    become(batch, as);
    const auto call = batch.call(SYS_socketpair, {AF_UNIX, static_cast<std::uint64_t>(type | SOCK_CLOEXEC), 0, where});
    become_root(batch, as);
    TRY(stub.run(batch));
    TRY(check(batch, call, "make a pair of Unix sockets"));
    const auto numbers = batch.read<std::array<int, 2>>(where);
    const Fd pidfd = TRY(kernel::pidfd_open(stub.process()));
    pair.mine = TRY(kernel::pidfd_getfd(pidfd.get(), numbers[0]));
    pair.other = TRY(kernel::pidfd_getfd(pidfd.get(), numbers[1]));
    batch = stub.batch();
    for (const int number : numbers) batch.call(SYS_close, {static_cast<std::uint64_t>(number)});
    return stub.run(batch);
  });
  if (TRY(done_by_process(std::move(made)))) return pair;
  std::array<int, 2> ends{-1, -1};
  const ActAs actor(as);
  if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) != 0) return fail_errno("make a pair of Unix sockets");
  return Pair{Fd(ends[0]), Fd(ends[1])};
}

Result<void> listen_as(int fd, const Name& name, int backlog, const Credentials& as, Destination& destination) {
  const auto what = fmt::format("listen on {}", describe(name));
  auto made = destination.as_process(as.pid, [&](Stub& stub) {
    return call_with(stub, fd, as, what, SYS_listen, [&](kernel::Batch&) -> std::array<std::uint64_t, 6> {
      return {0, static_cast<std::uint64_t>(backlog)};
    });
  });
  if (TRY(done_by_process(std::move(made)))) return {};
  const ActAs actor(as);
  if (::listen(fd, backlog) != 0) return fail_errno("{}", what);
  return {};
}

Result<void> connect_as(int fd, const Name& name, const Credentials& as, Destination& destination) {
  // A path that is too long from the root is reached from where it was bound only, which is the workshop's to do.
  if (const auto address = absolute_address_of(name)) {
    auto made = destination.as_process(as.pid, [&](Stub& stub) {
      return call_with(stub, fd, as, fmt::format("connect to {}", describe(name)), SYS_connect,
                       [&](kernel::Batch& batch) -> std::array<std::uint64_t, 6> {
                         const auto* bytes = reinterpret_cast<const std::uint8_t*>(address->get());
                         return {0, batch.data({bytes, address->length}), address->length};
                       });
    });
    if (TRY(done_by_process(std::move(made)))) return {};
  }
  const ActAs actor(as);
  return connect_name(fd, name);
}

}  // namespace godwit::objects::local
