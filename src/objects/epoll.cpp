#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <thread>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {
namespace {

/// The kernel knows a registration by the description and the number that it had when it was added.
struct Registration {
  int number = -1;
  ObjectId target = 0;
  std::uint32_t events = 0;
  std::uint64_t data = 0;
  bool in_process = false;  ///< added by the process itself, where the number stands for what is watched
  MSGPACK_DEFINE_MAP(number, target, events, data, in_process)
};

struct State {
  ObjectId id = 0;  ///< its own
  int flags = 0;
  Holder holder;  ///< who adds what must be added in a process
  std::vector<Registration> registrations;
  MSGPACK_DEFINE_MAP(id, flags, holder, registrations)
};

// Bits that an EPOLLONESHOT registration keeps after it has fired (EP_PRIVATE_BITS in fs/eventpoll.c).
constexpr std::uint32_t private_bits = EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE;

/// So many calls of a batch are there for one instance; what is beyond them is added from outside, at five times the
/// cost.
constexpr std::size_t in_process_limit = 1024;

// Descriptor numbers end at fs.nr_open, 1,048,576 unless raised.
constexpr int largest_number = 1 << 24;

bool fired(const Registration& registration) {
  return (registration.events & EPOLLONESHOT) != 0 && (registration.events & ~private_bits) == 0;
}

bool matches(const Descriptor& descriptor) {
  return is_anonymous(descriptor.link, "[eventpoll]");
}

/// One "tfd:" line of fdinfo.
struct Line {
  int number = 0;
  std::uint32_t events = 0;
  std::uint64_t data = 0;
  std::uint64_t inode = 0;
  unsigned device = 0;           ///< as the kernel numbers it
  std::uint32_t occurrence = 0;  ///< how many lines before it have the same number
};

Result<std::vector<Line>> read_lines(int fd) {
  const std::string info = TRY(read_info(fd));
  std::vector<Line> lines;
  std::map<int, std::uint32_t> seen;
  for (std::size_t at = info.find("tfd:"); at != std::string::npos; at = info.find("\ntfd:", at)) {
    if (info[at] == '\n') ++at;
    Line line;
    unsigned events = 0, device = 0;
    unsigned long long data = 0, inode = 0;
    const std::string text = info.substr(at, info.find('\n', at) - at);
    if (std::sscanf(text.c_str(), "tfd: %d events: %x data: %llx pos:%*d ino:%llx sdev:%x", &line.number, &events,
                    &data, &inode, &device) != 5)
      return fail(ErrorKind::refused, "unknown form of an epoll instance's fdinfo");
    line.events = events;
    line.data = data;
    line.inode = inode;
    line.device = device;
    line.occurrence = seen[line.number]++;
    lines.push_back(line);
  }
  return lines;
}

/// True when line's registration is of this description (KCMP_EPOLL_TFD on our own duplicates).
bool is_target(int epoll, const Line& line, const Descriptor& candidate) {
  constexpr unsigned minor_bits = 20;
  const auto device = ::major(candidate.status.st_dev) << minor_bits | ::minor(candidate.status.st_dev);
  if (candidate.status.st_ino != line.inode || device != line.device) return false;
  // A socket has one description, and the kernel looks through all registrations for what is asked next.
  if (S_ISSOCK(candidate.status.st_mode)) return true;
  struct kcmp_epoll_slot slot {
    .efd = static_cast<std::uint32_t>(epoll), .tfd = static_cast<std::uint32_t>(line.number), .toff = line.occurrence
  };
  const pid_t self = ::getpid();
  return ::syscall(SYS_kcmp, self, self, KCMP_EPOLL_TFD, candidate.fd, &slot) == 0;
}

std::optional<ObjectId> find_target(const Descriptor& epoll, const Line& line, Source& source) {
  const auto& all = source.descriptors();
  for (const auto& holder : epoll.holders) {
    const auto id = source.find(holder.process, line.number);
    if (id && *id < all.size() && is_target(epoll.fd, line, all[*id])) return id;
  }
  // Its number was closed or given to another one since; the description lives on under another number.
  for (const auto& each : all)
    if (is_target(epoll.fd, line, each)) return each.id;
  return std::nullopt;
}

/// While the pod runs (`running`), a target that no process holds has only been closed since its table was read.
Result<State> read_registrations(const Descriptor& descriptor, Source& source, bool running) {
  State state{.id = descriptor.id, .flags = descriptor.flags};
  if (descriptor.holders.empty()) return fail(ErrorKind::invalid, "an epoll instance that no process holds");
  state.holder = descriptor.holders.front();
  for (const auto& line : TRY(read_lines(descriptor.fd))) {
    const auto target = find_target(descriptor, line, source);
    if (!target && running) continue;
    if (!target)
      return fail(ErrorKind::refused, "epoll watches a description (added as number {}) that no process holds any more",
                  line.number);
    const auto& watched = source.descriptors()[*target];
    Registration registration{.number = line.number, .target = *target, .events = line.events, .data = line.data};
    // A signalfd reports the signals of whoever adds it.
    if (is_anonymous(watched.link, "[signalfd]")) {
      const auto adder = std::ranges::find_if(
          descriptor.holders, [&](const Holder& holder) { return source.find(holder.process, line.number) == target; });
      if (adder == descriptor.holders.end())
        return fail(ErrorKind::refused, "epoll watches a signalfd whose number {} has been closed", line.number);
      registration.in_process = true;
      state.holder = *adder;
    }
    state.registrations.push_back(registration);
  }
  std::size_t in_process = 0;
  for (auto& each : state.registrations) {
    if (each.in_process || fired(each) || source.find(state.holder.process, each.number) != each.target) continue;
    if (++in_process > in_process_limit) break;
    each.in_process = true;
  }
  return state;
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  return read_registrations(descriptor, source, false);
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  TRY(read_registrations(descriptor, source, true));
  return {};
}

Result<Fd> build(const State& state, Destination&) {
  Fd fd{::epoll_create1(EPOLL_CLOEXEC)};
  if (!fd) return fail_errno("epoll_create1");
  TRY(set_status_flags(fd.get(), state.flags));
  return fd;
}

/// The numbers under which targets stand while they are added, in a descriptor table of this thread's own.
class Numbers {
 public:
  /// `epoll` and `targets` are moved out of the way of the numbers that will be taken.
  static Result<Numbers> arrange(const State& state, int epoll, const std::map<ObjectId, int>& targets) {
    if (::unshare(CLONE_FILES) < 0) return fail_errno("unshare the descriptor table");
    std::set<int> taken;
    for (const auto& each : state.registrations) taken.insert(each.number);
    const int above = taken.empty() ? 0 : *taken.rbegin() + 1;
    const auto move = [&](int fd) { return taken.contains(fd) ? ::fcntl(fd, F_DUPFD_CLOEXEC, above) : fd; };
    Numbers numbers;
    numbers.instance_ = move(epoll);
    if (numbers.instance_ < 0) return fail_errno("duplicate an epoll instance above {}", above);
    for (const auto& [id, fd] : targets)
      if ((numbers.targets_[id] = move(fd)) < 0) return fail_errno("duplicate a watched descriptor above {}", above);
    return numbers;
  }

  Result<void> control(int operation, const Registration& registration, std::uint32_t events) {
    if (::dup3(targets_[registration.target], registration.number, O_CLOEXEC) < 0)
      return fail_errno("take descriptor number {}", registration.number);
    struct epoll_event event {};
    event.events = events;
    event.data.u64 = registration.data;
    if (::epoll_ctl(instance_, operation, registration.number, &event) < 0)
      return fail_errno("add descriptor {} to an epoll instance", registration.number);
    return {};
  }
  [[nodiscard]] int instance() const { return instance_; }

 private:
  int instance_ = -1;
  std::map<ObjectId, int> targets_;
};

/// Registrations that have fired must stay silent until they are armed again, but adding one always arms it (for
/// EPOLLERR and EPOLLHUP at least). So they are made to fire, alone in the instance: most descriptors are ready for
/// something. One that isn't stays armed for errors.
Result<void> add_fired(Numbers& numbers, int epoll, const std::vector<Registration>& silent) {
  for (const auto& each : silent)
    TRY(numbers.control(EPOLL_CTL_ADD, each, each.events | EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP));
  std::array<struct epoll_event, 64> ignored{};
  int ready = 0;
  do {
    ready = ::epoll_wait(numbers.instance(), ignored.data(), ignored.size(), 0);
    if (ready < 0) return fail_errno("epoll_wait");
  } while (ready > 0);
  std::set<int> armed;
  for (const auto& line : TRY(read_lines(epoll)))
    if ((line.events & ~private_bits) != 0) armed.insert(line.number);
  for (const auto& each : silent)
    if (armed.contains(each.number)) TRY(numbers.control(EPOLL_CTL_MOD, each, each.events));
  return {};
}

/// Runs on a thread of its own, which ends with it.
Result<void> add_all(const State& state, int epoll, const std::map<ObjectId, int>& targets) {
  auto numbers = TRY(Numbers::arrange(state, epoll, targets));
  std::vector<Registration> silent;
  for (const auto& each : state.registrations)
    if (!each.in_process && fired(each)) silent.push_back(each);
  if (!silent.empty()) TRY(add_fired(numbers, epoll, silent));
  for (const auto& each : state.registrations)
    if (!each.in_process && !fired(each)) TRY(numbers.control(EPOLL_CTL_ADD, each, each.events));
  return {};
}

Result<void> attach(const State& state, const Holder& holder, kernel::Batch& batch, Destination& destination) {
  // Called for every holder; the registrations are the instance's.
  if (holder.process != state.holder.process || holder.number != state.holder.number) return {};
  std::map<ObjectId, int> targets;
  for (const auto& each : state.registrations) {
    if (each.number < 0 || each.number > largest_number)
      return fail(ErrorKind::invalid, "epoll watches number {}", each.number);
    if (each.in_process) {
      struct epoll_event event {};
      event.events = each.events;
      event.data.u64 = each.data;
      batch.must(fmt::format("add descriptor {} to an epoll instance", each.number), SYS_epoll_ctl,
                 {static_cast<std::uint64_t>(holder.number), EPOLL_CTL_ADD, static_cast<std::uint64_t>(each.number),
                  batch.value(event)});
      continue;
    }
    targets[each.target] = destination.built(each.target);
    if (targets[each.target] < 0) return fail(ErrorKind::invalid, "epoll watches object {}, not there", each.target);
  }
  if (targets.empty()) return {};
  const int epoll = destination.built(state.id);
  if (epoll < 0) return fail(ErrorKind::invalid, "epoll instance {} has not been built", state.id);
  Result<void> result;
  std::thread([&] { result = add_all(state, epoll, targets); }).join();
  return result;
}

}  // namespace

const Kind epoll_kind{.name = "epoll",
                      .matches = matches,
                      .preflight = preflight,
                      .capture = captures<State, capture>,
                      .build = builds<State, build>,
                      .attach = attaches<State, attach>,
                      .open = nothing_to_open};

}  // namespace godwit::objects
