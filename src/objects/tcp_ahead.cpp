#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>

#include "base/both.hpp"
#include "base/log.hpp"
#include "kernel/tcp_memory.hpp"
#include "objects/ahead.hpp"
#include "objects/tcp_state.hpp"

/// TCP connections, captured and built while the pod runs.
namespace godwit::objects {
namespace {

using tcp::Connection;
using tcp::State;

constexpr int state_established = 1;

/// What a connection is in the freeze. Where bytes wait in it, `connection` has everything.
struct Change {
  std::uint32_t sent = 0, received = 0, timestamp = 0;
  std::uint32_t window_update = 0, send_window = 0, max_window = 0, receive_window = 0, receive_window_update = 0;
  std::vector<Connection> connection;
  MSGPACK_DEFINE(sent, received, timestamp, window_update, send_window, max_window, receive_window,
                 receive_window_update, connection)
};

/// What TCP_TIMESTAMP shows where nothing is added to the clock.
std::uint32_t read_clock() {
  const Fd fresh(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  return static_cast<std::uint32_t>(int_option(fresh.get(), IPPROTO_TCP, TCP_TIMESTAMP));
}

/// A number that no other socket of this node ever has.
std::uint64_t cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof(cookie);
  return ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}

bool has_owner(int fd) {
  struct f_owner_ex owner {};
  return ::fcntl(fd, F_GETOWN_EX, &owner) != 0 || owner.pid != 0 || ::fcntl(fd, F_GETSIG) != 0;
}

kernel::TcpMemory::Toggled as_told(const SocketOptions& options) {
  return {.no_delay = static_cast<int>(options.value("TCP_NODELAY")),
          .cork = static_cast<int>(options.value("TCP_CORK")),
          .low_water = static_cast<int>(options.value("SO_RCVLOWAT", 1)),
          .priority = static_cast<int>(options.value("SO_PRIORITY")),
          .mark = static_cast<int>(options.value("SO_MARK")),
          .peek_offset = static_cast<int>(options.value("SO_PEEK_OFF", -1)),
          .type_of_service = static_cast<int>(options.value("IP_TOS")),
          .receive_timeout = options.value("SO_RCVTIMEO") != 0,
          .send_timeout = options.value("SO_SNDTIMEO") != 0};
}

/// What doesn't change in a connection that is established.
Connection lasting(const tcp_info& info, std::uint32_t mss) {
  Connection connection;
  connection.window_scaling = info.tcpi_options & TCPI_OPT_WSCALE;
  connection.sack = info.tcpi_options & TCPI_OPT_SACK;
  connection.timestamps = info.tcpi_options & TCPI_OPT_TIMESTAMPS;
  connection.send_scale = info.tcpi_snd_wscale;
  connection.receive_scale = info.tcpi_rcv_wscale;
  connection.mss = mss;
  return connection;
}

/// Whether it is as `lasting` makes them: nothing waits in it, and neither side has come to its end.
bool only_lasting(const Connection& connection) {
  return connection.received.empty() && connection.sending.empty() && connection.in_flight == 0 &&
         connection.our_fin == tcp::Fin::none && !connection.our_fin_sent && !connection.their_fin &&
         !connection.receive_shut;
}

Connection brought_up_to_date(Connection connection, const Change& change) {
  connection.send_sequence = change.sent;
  connection.receive_sequence = change.received;
  connection.timestamp = connection.timestamps ? change.timestamp : 0;
  connection.window_update = change.window_update;
  connection.send_window = change.send_window;
  connection.max_window = change.max_window;
  connection.receive_window = change.receive_window;
  connection.receive_window_update = change.receive_window_update;
  return connection;
}

Change change_of(const kernel::TcpProgress& now) {
  return {.sent = now.sent,
          .received = now.received,
          .timestamp = now.timestamp,
          .window_update = now.window_update,
          .send_window = now.send_window,
          .max_window = now.max_window,
          .receive_window = now.receive_window,
          .receive_window_update = now.receive_window_update,
          .connection = {}};
}

/// A connection of our own by loopback: what its memory shows must be what system calls tell.
Result<void> check_memory(kernel::TcpMemory& memory) {
  const auto make = [] { return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP)); };
  const Fd listener = make(), client = make();
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (!listener || !client || ::bind(listener.get(), generic, length) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), generic, &length) != 0 || ::connect(client.get(), generic, length) != 0)
    return fail_errno("make a connection");
  const Fd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  std::array<char, 16> bytes{};
  // The answer acknowledges the question.
  if (!server || ::send(client.get(), "abc", 3, MSG_NOSIGNAL) != 3 ||
      ::recv(server.get(), bytes.data(), 3, MSG_WAITALL) != 3 || ::send(server.get(), "defgh", 5, MSG_NOSIGNAL) != 5 ||
      ::recv(client.get(), bytes.data(), 5, MSG_WAITALL) != 5)
    return fail_errno("use a connection");
  const std::array fds{client.get()};
  const auto image = TRY(memory.read(fds)).front();
  const auto shown = memory.progress(image, read_clock());
  const auto info = TRY(tcp::info_of(client.get()));
  const auto told = TRY(tcp::read_connection(client.get(), info, false));
  constexpr std::uint32_t patience_ms = 1'000;
  const bool right = shown.quiet && told.send_sequence == shown.sent && told.receive_sequence == shown.received &&
                     told.window_update == shown.window_update && told.send_window == shown.send_window &&
                     told.max_window == shown.max_window && told.receive_window == shown.receive_window &&
                     told.receive_window_update == shown.receive_window_update && told.mss == shown.mss &&
                     (!told.timestamps || told.timestamp + 4 - shown.timestamp < patience_ms);
  if (!right) return fail(ErrorKind::failed, "this kernel keeps TCP connections in another way");
  TRY(set_int_option(client.get(), IPPROTO_TCP, TCP_NODELAY, 1));
  const auto changed = TRY(memory.read(fds)).front();
  if (memory.same_options(image, changed) || memory.toggled(changed).no_delay != 1)
    return fail(ErrorKind::failed, "this kernel keeps the options of TCP connections in another way");
  return {};
}

/// The kernel's memory, if it can be read and is as expected.
kernel::TcpMemory* memory_of_connections() {
  static kernel::TcpMemory* const memory = [] {
    auto opened = kernel::TcpMemory::get();
    const auto checked = opened ? check_memory(**opened) : Result<void>(std::unexpected(opened.error()));
    if (!checked) log::warn("TCP connections are captured whole in the freeze: {}", checked.error().message());
    return checked ? *opened : nullptr;
  }();
  return memory;
}

}  // namespace

// --- source ----------------------------------------------------------------------------------------------------------

struct AheadSource::Parts {
  struct Entry {
    std::uint32_t key = 0;
    State state;
    std::vector<Holder> holders;
    kernel::TcpMemory::Image image;
  };
  std::map<ino_t, Entry> entries;
  std::unordered_map<ObjectId, kernel::TcpMemory::Image> now;
  std::uint32_t clock = 0;

  static Result<std::optional<Entry>> capture(const Descriptor&, kernel::TcpMemory&);
};

AheadSource::AheadSource() : parts_(std::make_unique<Parts>()) {}
AheadSource::~AheadSource() = default;

/// An option that changes between the two looks at the memory shows; one that is set to and fro meanwhile would not,
/// and those with which programs do that are compared with what was told.
Result<std::optional<AheadSource::Parts::Entry>> AheadSource::Parts::capture(const Descriptor& descriptor,
                                                                             kernel::TcpMemory& memory) {
  const int fd = descriptor.fd;
  const auto info = TRY(tcp::info_of(fd));
  const auto peer = peer_address(fd);
  if (info.tcpi_state != state_established || !peer || (descriptor.flags & O_ASYNC) != 0 || has_owner(fd))
    return std::nullopt;
  const auto local = TRY(local_address(fd));
  Entry entry{.state = {.family = local.storage.ss_family,
                        .phase = tcp::Phase::connected,
                        .local = inet_address(local),
                        .remote = inet_address(*peer)},
              .holders = descriptor.holders};
  if (tcp::is_inside(entry.state.local, entry.state.remote)) return std::nullopt;
  // Only a socket that has a number of its own is known again.
  if (cookie_of(fd) == 0) return std::nullopt;
  const std::array fds{fd};
  entry.image = TRY(memory.read(fds)).front();
  if (!memory.is_whole(entry.image)) return std::nullopt;
  entry.state.options = TRY(read_socket_options(descriptor, tcp::option_sets(entry.state.family, true)));
  const auto after = TRY(memory.read(fds)).front();
  if (!memory.same_options(entry.image, after) || memory.toggled(after) != as_told(entry.state.options))
    return std::nullopt;
  entry.state.connection.push_back(lasting(info, memory.progress(after, 0).mss));
  return entry;
}

Result<std::vector<AheadImage>> AheadSource::look(std::span<const Descriptor> descriptors) {
  std::vector<AheadImage> images;
  for (const auto& descriptor : descriptors) {
    if (!S_ISSOCK(descriptor.status.st_mode) || parts_->entries.contains(descriptor.status.st_ino)) continue;
    if (!tcp::matches(descriptor) || socket_class(descriptor).protocol != IPPROTO_TCP) continue;
    auto* memory = memory_of_connections();
    if (memory == nullptr) return images;
    // What ends or changes just now is for the freeze.
    auto entry = Parts::capture(descriptor, *memory);
    if (!entry || !*entry) continue;
    (*entry)->key = static_cast<std::uint32_t>(parts_->entries.size());
    images.push_back({(*entry)->key, image::pack((*entry)->state), (*entry)->holders});
    parts_->entries.emplace(descriptor.status.st_ino, std::move(**entry));
  }
  return images;
}

bool AheadSource::empty() const {
  return parts_->entries.empty();
}

Result<void> AheadSource::compare(Source& source) {
  parts_->now.clear();
  if (parts_->entries.empty()) return {};
  std::vector<const Descriptor*> known;
  std::vector<int> fds;
  for (const auto& descriptor : source.descriptors()) {
    if (!S_ISSOCK(descriptor.status.st_mode) || !parts_->entries.contains(descriptor.status.st_ino)) continue;
    known.push_back(&descriptor);
    fds.push_back(descriptor.fd);
  }
  auto* memory = memory_of_connections();
  auto images = TRY(memory->read(fds));
  parts_->clock = read_clock();
  auto& established = source.shared<tcp::Established>(tcp::established_key).ids;
  for (std::size_t i = 0; i < known.size(); ++i) {
    const auto& before = parts_->entries.at(known[i]->status.st_ino).image;
    if (!memory->same_options(before, images[i])) continue;
    established.insert(known[i]->id);
    parts_->now.emplace(known[i]->id, std::move(images[i]));
  }
  return {};
}

Result<std::optional<Kept>> AheadSource::keep(const Descriptor& descriptor, Source& source) {
  const auto now = parts_->now.find(descriptor.id);
  if (now == parts_->now.end()) return std::nullopt;
  const auto& entry = parts_->entries.at(descriptor.status.st_ino);
  const auto& options = entry.state.options;
  if ((descriptor.flags & O_NONBLOCK) != options.flags || descriptor.status.st_uid != options.uid ||
      descriptor.status.st_gid != options.gid || (descriptor.flags & O_ASYNC) != 0 || has_owner(descriptor.fd))
    return std::nullopt;
  const auto progress = memory_of_connections()->progress(now->second, parts_->clock);
  if (progress.state != state_established || TRY(tcp::is_pending(descriptor, source))) return std::nullopt;
  auto change = change_of(progress);
  if (!progress.quiet) {
    const auto info = TRY(tcp::info_of(descriptor.fd));
    change.connection.push_back(TRY(tcp::capture_connected(descriptor, info, source, entry.state)));
  }
  const auto same = [](const Holder& a, const Holder& b) { return a.process == b.process && a.number == b.number; };
  const bool same_holders = std::ranges::equal(descriptor.holders, entry.holders, same);
  return Kept{descriptor.id, entry.key, image::pack(change), same_holders ? std::vector<Holder>{} : descriptor.holders};
}

// --- destination -----------------------------------------------------------------------------------------------------

struct AheadDestination::Parts {
  struct Prepared {
    Fd fd;
    State state;
    SocketAddress local, remote;
    std::vector<Holder> holders;
    bool late = false;
    bool seated = false;  ///< it has been brought up to date before, in a freeze that was put off
  };
  std::unordered_map<std::uint32_t, Prepared> prepared;
};

namespace {

/// A connection in repair mode ends without a sound; its socket stays as it was made.
Result<void> unseat(int fd) {
  const sockaddr nowhere{.sa_family = AF_UNSPEC, .sa_data = {}};
  if (::connect(fd, &nowhere, sizeof(nowhere)) != 0) return fail_errno("end a connection in repair mode");
  static_cast<void>(int_option(fd, SOL_SOCKET, SO_ERROR));
  return {};
}

}  // namespace

AheadDestination::AheadDestination() : parts_(std::make_unique<Parts>()) {}
AheadDestination::~AheadDestination() = default;

Result<void> AheadDestination::build(AheadImage image, Destination& destination) {
  auto state = TRY(image::unpack<State>(image.state));
  if ((state.family != AF_INET && state.family != AF_INET6) || state.phase != tcp::Phase::connected ||
      state.connection.size() != 1)
    return fail(ErrorKind::invalid, "a connection of family {} that was sent ahead", state.family);
  // What waits comes in the freeze, if anything.
  if (!only_lasting(state.connection.front()))
    return fail(ErrorKind::invalid, "a connection that was sent ahead with what waits in it, or half closed");
  Parts::Prepared made{.fd = Fd(::socket(state.family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP))};
  if (!made.fd) return fail_errno("make a TCP socket");
  const int fd = made.fd.get();
  const SocketClass is{state.family, SOCK_STREAM, IPPROTO_TCP};
  TRY(write_socket_options(fd, is, state.options, OptionStage::early, destination));
  made.local = TRY(socket_address(state.family, state.local));
  made.remote = TRY(socket_address(state.family, state.remote));
  TRY(tcp::repair(fd, TCP_REPAIR_ON));
  TRY(tcp::bind_to(fd, made.local, state.local));
  if (state.options.flags != 0 && ::fcntl(fd, F_SETFL, O_RDWR | (state.options.flags & O_NONBLOCK)) != 0)
    return fail_errno("set the flags of a socket");
  made.late = has_late_options(is, state.options, destination);
  made.state = std::move(state);
  made.holders = std::move(image.holders);
  if (!parts_->prepared.emplace(image.key, std::move(made)).second)
    return fail(ErrorKind::invalid, "object {} was sent ahead twice", image.key);
  return {};
}

int AheadDestination::built(std::uint32_t key) const {
  const auto found = parts_->prepared.find(key);
  return found == parts_->prepared.end() ? -1 : found->second.fd.get();
}

const std::vector<Holder>& AheadDestination::holders(std::uint32_t key) const {
  static const std::vector<Holder> none;
  const auto found = parts_->prepared.find(key);
  return found == parts_->prepared.end() ? none : found->second.holders;
}

std::vector<std::pair<std::uint32_t, const Holder*>> AheadDestination::held_by(PodPid process) const {
  std::vector<std::pair<std::uint32_t, const Holder*>> held;
  for (const auto& [key, prepared] : parts_->prepared)
    for (const auto& holder : prepared.holders)
      if (holder.process == process) held.emplace_back(key, &holder);
  std::ranges::sort(held, {}, [](const auto& each) { return each.second->number; });
  return held;
}

Fd AheadDestination::take(std::uint32_t key) {
  const auto found = parts_->prepared.find(key);
  return found == parts_->prepared.end() ? Fd() : std::move(found->second.fd);
}

void AheadDestination::clear() {
  parts_->prepared.clear();
}

Result<void> AheadDestination::finish(const std::vector<Kept>& all, Destination& destination) {
  struct Seat {
    Parts::Prepared* prepared;
    Connection connection;
    bool quiet;
  };
  std::vector<Seat> seats;
  seats.reserve(all.size());
  auto& openings = destination.shared<tcp::Openings>(tcp::openings_key);
  for (auto& [key, prepared] : parts_->prepared) {
    if (!std::exchange(prepared.seated, false)) continue;
    TRY(unseat(prepared.fd.get()));
    // Who isn't kept this time is closed, and its number somebody else's.
    openings.erase(prepared.fd.get());
  }
  for (const auto& kept : all) {
    const auto found = parts_->prepared.find(kept.key);
    if (found == parts_->prepared.end() || !found->second.fd)
      return fail(ErrorKind::invalid, "object {} was not sent ahead", kept.key);
    auto change = TRY(image::unpack<Change>(kept.change));
    const bool quiet = change.connection.empty();
    auto connection = quiet ? brought_up_to_date(found->second.state.connection.front(), change)
                            : std::move(change.connection.front());
    found->second.seated = true;
    seats.push_back({&found->second, std::move(connection), quiet});
  }
  const auto seat = [&](std::size_t begin, std::size_t end) -> Result<void> {
    for (std::size_t i = begin; i < end; ++i) {
      const auto& [prepared, connection, quiet] = seats[i];
      if (quiet)
        TRY(tcp::rebuild_connection(prepared->fd.get(), prepared->local, prepared->remote, connection, destination));
    }
    return {};
  };
  // By two: nothing of `destination` is used where nothing waits in a connection.
  constexpr std::size_t worth_a_thread = 64;
  const std::size_t half = seats.size() < worth_a_thread ? 0 : seats.size() / 2;
  const auto front = [&] { return seat(0, half); };
  const auto back = [&] { return seat(half, seats.size()); };
  TRY(half == 0 ? back() : both(front, back));
  for (const auto& [prepared, connection, quiet] : seats) {
    const int fd = prepared->fd.get();
    if (!quiet) TRY(tcp::rebuild_connection(fd, prepared->local, prepared->remote, connection, destination));
    if (prepared->late)
      TRY(write_socket_options(fd, {prepared->state.family, SOCK_STREAM, IPPROTO_TCP}, prepared->state.options,
                               OptionStage::late, destination));
    auto opening = tcp::opening_of(prepared->state, connection);
    // Its peer knows all: what came in was acknowledged, and the window it was told is a wide one.
    opening.silent = opening.silent || (quiet && connection.receive_window_update == connection.receive_sequence &&
                                        connection.receive_window >= 2 * connection.mss);
    openings[fd] = opening;
  }
  return {};
}

}  // namespace godwit::objects
