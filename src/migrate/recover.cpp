#include "migrate/recover.hpp"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <thread>

#include "base/log.hpp"
#include "kernel/gadget_x86_64.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "kernel/remote.hpp"
#include "migrate/tracking.hpp"
#include "objects/pod_clock.hpp"

namespace godwit::migrate {

namespace {

constexpr std::size_t journal_limit = 16 * MiB;
constexpr image::Limits limits{.bytes = journal_limit, .items = 256 * 1024, .blob = 64 * KiB, .depth = 8};

std::string path_in(const std::string& directory) {
  return directory + "/migrating";
}

std::vector<HostPid> processes_of(pod::Pod& pod) {
  auto found = pod.workload().processes();
  if (!found) log::error("{}: {}", pod.spec().name, found.error().message());
  return found ? std::move(*found) : std::vector<HostPid>{};
}

// --- sockets
// ----------------------------------------------------------------------------------------------------------

/// Whether it was in repair mode. One that has arrived tells its peer its window, as it would have after the commit;
/// one that never left stays silent.
bool leave_repair(int socket, bool arrived) {
  int repaired = 0;
  socklen_t size = sizeof repaired;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &repaired, &size) != 0 || repaired == 0) return false;
  tcp_info info{};
  size = sizeof info;
  constexpr int established = 1;
  const bool known = ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0;
  const int mode = arrived && known && info.tcpi_state == established ? TCP_REPAIR_OFF : TCP_REPAIR_OFF_NO_WP;
  return ::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &mode, sizeof mode) == 0;
}

void recover_sockets(pod::Pod& pod, bool arrived) {
  std::size_t found = 0;
  std::set<std::string> seen;
  for (const HostPid process : processes_of(pod)) {
    const auto numbers = kernel::list_descriptors(process);
    const auto pidfd = kernel::pidfd_open(process);
    if (!numbers || !pidfd) continue;
    for (const int number : *numbers) {
      const auto link = kernel::read_link(process, fmt::format("fd/{}", number));
      if (!link || !link->starts_with("socket:") || !seen.insert(*link).second) continue;
      const auto socket = kernel::pidfd_getfd(pidfd->get(), number);
      if (socket && leave_repair(socket->get(), arrived)) ++found;
    }
  }
  if (found > 0) log::info("{}: {} connections were in repair mode", pod.spec().name, found);
}

// --- the gadget ------------------------------------------------------------------------------------------------------

/// Whether a thread of the process stands in the range, blocked in a call of ours. A running one is out of it before
/// anybody could look: a batch ends by itself.
bool anyone_in(HostPid process, RemoteAddress begin, RemoteAddress end) {
  for (const HostPid thread : kernel::list_threads(process).value_or(std::vector<HostPid>{})) {
    const auto text = kernel::read_file(thread, "syscall");
    if (!text) continue;
    const std::size_t last = text->find_last_of(' ');
    if (last == std::string::npos) continue;  // "running"
    const RemoteAddress at = std::strtoull(text->c_str() + last + 1, nullptr, 16);
    if (begin <= at && at < end) return true;
  }
  return false;
}

/// True when nothing is left in this process.
Result<bool> recover_gadget(HostPid init, HostPid process, const objects::PodClock& clock, const std::string& pod) {
  const auto status = TRY(kernel::read_status(process));
  const ThreadIds ids{process, PodPid{status.ns_tgid.empty() ? 0 : status.ns_tgid.back()}};
  auto gadget = TRY(kernel::Gadget::find(process));
  if (!gadget) return true;
  constexpr int tries = 100;
  for (int attempt = 0; anyone_in(process, gadget->begin(), gadget->begin() + gadget->size()); ++attempt) {
    if (attempt == tries) return fail(ErrorKind::busy, "a thread of process {} is still in the gadget", process.value);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const auto pause = TRY(remove_gadget(init, ids, *gadget, clock));
  log::info("{}: the gadget that was left in process {} is gone; a thread stood still for {} us", pod, process.value,
            pause);
  return true;
}

}  // namespace

Journal Journal::begin(bool arriving, const std::string& move, const std::string& peer, const store::Record& record) {
  const BytesView code = kernel::gadget::code();
  return {.arriving = arriving,
          .move = move,
          .peer = peer,
          .strategy = {},
          .record = record,
          .gadget = Bytes(code.begin(), code.end()),
          .gadget_size = kernel::Gadget::full_size()};
}

Result<void> write_journal(const pod::Pod& pod, const Journal& journal) {
  const std::string path = path_in(pod.directory()), fresh = path + ".new";
  const Bytes bytes = image::pack(journal);
  if (bytes.size() > journal_limit)
    return fail(ErrorKind::refused, "{} has too many threads to be written down", pod.spec().name);
  {
    const Fd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!file) return fail_errno("write {}", fresh);
    if (::write(file.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      return fail_errno("write {}", fresh);
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("rename {}", fresh);
  return {};
}

Result<std::optional<Journal>> read_journal(const std::string& directory) {
  const std::string path = path_in(directory);
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file && errno == ENOENT) return std::nullopt;
  if (!file) return fail_errno("read {}", path);
  Bytes bytes(journal_limit + 1);
  std::size_t size = 0;
  for (;;) {
    const ssize_t got = ::read(file.get(), bytes.data() + size, bytes.size() - size);
    if (got < 0) return fail_errno("read {}", path);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  if (size > journal_limit) return fail(ErrorKind::invalid, "{} is over the limit", path);
  bytes.resize(size);
  return TRY(image::unpack<Journal>(bytes, limits));
}

void remove_journal(const pod::Pod& pod) {
  const std::string path = path_in(pod.directory());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) log::warn("remove {}: {}", path, std::strerror(errno));
}

void recover_frozen(pod::Pod& pod, const Journal& journal) {
  recover_sockets(pod, journal.arriving);
}

bool recover_running(pod::Pod& pod, const Journal& journal) {
  const auto& name = pod.spec().name;
  const BytesView own = kernel::gadget::code();
  if (!std::ranges::equal(journal.gadget, own) || journal.gadget_size != kernel::Gadget::full_size()) {
    log::error("{}: pages of another version's gadget may be left in it", name);
    return true;
  }
  const auto clock = objects::PodClock::of(pod.init());
  if (!clock) {
    log::error("{}: {}", name, clock.error().message());
    return false;
  }
  bool clean = true;
  for (const HostPid process : processes_of(pod)) {
    const auto gone = recover_gadget(pod.init(), process, *clock, name);
    if (gone || gone.error().kind == ErrorKind::gone || gone.error().code == ENOENT) continue;
    log::error("{}: {}", name, gone.error().message());
    clean = false;
  }
  return clean;
}

}  // namespace godwit::migrate
