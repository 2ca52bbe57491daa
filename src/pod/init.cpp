#include "pod/init.hpp"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <set>

#include "pod/init_launch.hpp"
#include "pod/init_streams.hpp"
#include "pod/root.hpp"

namespace godwit::pod {

namespace {

constexpr std::size_t connections_limit = 16;
constexpr std::size_t deposits_limit = 4096;
constexpr std::size_t events_limit = 1024;
constexpr const char* last_pid_file = "/proc/sys/kernel/ns_last_pid";

/// An answer on its way, with what goes along: borrowed numbers, and what must stay open until it is sent.
struct Reply {
  Response response;
  std::vector<int> descriptors;
  std::vector<Fd> owned;
};

class Init {
 public:
  Init(const Setup& setup, std::vector<Fd> descriptors);
  [[noreturn]] void live();

 private:
  struct Connection {
    Fd socket;
    bool creator = false;  ///< the one that a fleeting init lives as long as
    bool waiting = false;  ///< for a launch; nothing more is read until it is answered
  };
  struct Launching {
    Launched launched;
    std::shared_ptr<Connection> asker;
    std::uint32_t sequence = 0;
    bool first = false;
  };
  using ConnectionPointer = std::shared_ptr<Connection>;

  Result<void> prepare();
  std::vector<Watch> watches();
  void accept();
  void serve(const ConnectionPointer&);
  void close(const ConnectionPointer&);
  /// nullopt: the answer comes later.
  Result<std::optional<Reply>> execute(const Request&, std::vector<Fd>& descriptors, const ConnectionPointer&);
  Result<std::optional<Reply>> execute_on_deposits(const Request&, std::vector<Fd>& descriptors);
  Result<std::optional<Reply>> execute_on_streams(const Request&, std::vector<Fd>& descriptors);
  Result<void> launch(const Request&, const std::vector<Fd>& descriptors, const ConnectionPointer&);
  void settle(std::list<Launching>::iterator);
  void reap();
  void ended(pid_t, int status);
  void finish();
  [[noreturn]] void end(const ConnectionPointer&, std::uint32_t sequence);
  void answer(const ConnectionPointer&, std::uint32_t sequence, Reply);
  void publish(Event);
  void send_events();
  [[nodiscard]] Response life() const;

  Setup setup_;
  Fd control_, listener_, init_procs_;
  WorkloadCgroups cgroups_;
  Streams streams_;
  Fd children_;
  std::vector<ConnectionPointer> connections_;
  std::list<Launching> launching_;
  std::map<std::string, Fd> deposits_;
  std::deque<Event> events_;
  Fd subscriber_;
  std::set<pid_t> ours_;  ///< started here: their ends are told
  bool kept_ = false;
  pid_t first_ = 0;
  bool first_gone_ = false;  ///< and `status_` is how; the rest is being killed
  bool ended_ = false;       ///< nothing of the pod is left
  int status_ = 0;
};

Init::Init(const Setup& setup, std::vector<Fd> descriptors)
    : setup_(setup),
      control_(std::move(descriptors[setup_control])),
      listener_(std::move(descriptors[setup_listener])),
      init_procs_(std::move(descriptors[setup_cgroup_init])),
      streams_(std::move(descriptors[setup_log])),
      kept_(!setup.fleeting) {
  cgroups_.directory = std::move(descriptors[setup_cgroup_work]);
  for (std::size_t i = setup_cgroup_limits; i < descriptors.size(); ++i)
    cgroups_.limits.push_back(std::move(descriptors[i]));
}

/// Descriptors of the zygote that we have been born with would keep the wrong things alive.
void close_all_but(std::vector<int> keep) {
  std::ranges::sort(keep);
  unsigned from = 3;
  for (const int fd : keep) {
    if (static_cast<unsigned>(fd) > from) close_range(from, static_cast<unsigned>(fd) - 1, 0);
    from = static_cast<unsigned>(fd) + 1;
  }
  close_range(from, ~0U, 0);
}

Result<void> Init::prepare() {
  std::vector<int> keep = {control_.get(), listener_.get(), init_procs_.get(), cgroups_.directory.get(),
                           streams_.log().directory()};
  for (const Fd& procs : cgroups_.limits) keep.push_back(procs.get());
  close_all_but(std::move(keep));
  prctl(PR_SET_NAME, "godwit-init");
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  if (setsid() < 0) return fail_errno("setsid");
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr);  // the node's session keys are none of the pod's
  if (::write(init_procs_.get(), "0", 1) != 1) return fail_errno("join the cgroup of the pod's init");
  init_procs_.reset();
  if (sethostname(setup_.hostname.data(), setup_.hostname.size()) != 0)
    return fail_errno("set the pod's hostname to {}", setup_.hostname);
  TRY(enter_root({setup_.upper, setup_.work, setup_.merged, setup_.hidden}));

  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return fail_errno("open /dev/null in the pod");
  for (int number = 0; number < 3; ++number) dup2(null, number);
  if (null > 2) ::close(null);
  TRY(streams_.open(setup_.terminal, setup_.input));

  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  children_ = Fd(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!children_) return fail_errno("make a signalfd");
  return {};
}

void Init::live() {
  auto prepared = prepare();
  const auto connection = std::make_shared<Connection>(Connection{std::move(control_), true, false});
  if (!prepared) {
    answer(connection, 0, {to_response(std::move(prepared).error()), {}, {}});
    _exit(1);
  }
  connections_.push_back(connection);
  answer(connection, 0, {});
  for (;;) {
    auto all = watches();
    std::vector<pollfd> polled;
    polled.reserve(all.size());
    for (const Watch& watch : all) polled.push_back({watch.fd, watch.events, 0});
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (polled[i].revents != 0) all[i].act(polled[i].revents);
  }
}

std::vector<Watch> Init::watches() {
  std::erase_if(connections_, [](const auto& connection) { return !connection->socket; });
  std::vector<Watch> all;
  // Before the children: what a launch has become is known before its end is.
  for (auto launch = launching_.begin(); launch != launching_.end(); ++launch)
    all.push_back({launch->launched.report.get(), POLLIN, [this, pid = launch->launched.process](short) {
                     const auto found = std::ranges::find(
                         launching_, pid, [](const Launching& entry) { return entry.launched.process; });
                     if (found != launching_.end()) settle(found);
                   }});
  all.push_back({children_.get(), POLLIN, [this](short) { reap(); }});
  all.push_back({listener_.get(), POLLIN, [this](short) { accept(); }});
  for (const auto& connection : connections_)
    all.push_back({connection->socket.get(), static_cast<short>(connection->waiting ? 0 : POLLIN),
                   [this, connection](short) { serve(connection); }});
  if (subscriber_) {
    const short events = events_.empty() ? POLLIN : POLLIN | POLLOUT;
    all.push_back({subscriber_.get(), events, [this](short ready) {
                     if ((ready & (POLLHUP | POLLERR | POLLIN)) != 0)
                       subscriber_.reset();
                     else
                       send_events();
                   }});
  }
  streams_.watch(all);
  return all;
}

void Init::accept() {
  Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket || connections_.size() >= connections_limit) return;
  connections_.push_back(std::make_shared<Connection>(Connection{std::move(socket), false, false}));
}

void Init::close(const ConnectionPointer& connection) {
  connection->socket.reset();
  // Whoever was making this pod has died. With us dies everything in the pod.
  if (connection->creator && !kept_) _exit(0);
}

void Init::serve(const ConnectionPointer& connection) {
  if (!connection->socket) return;
  auto message = receive_message(connection->socket.get(), MSG_DONTWAIT);
  if (!message) {
    if (message.error().kind != ErrorKind::busy) close(connection);
    return;
  }
  const auto request = image::unpack<Request>(message->bytes);
  if (!request) {
    close(connection);
    return;
  }
  auto outcome = execute(*request, message->descriptors, connection);
  if (!outcome)
    answer(connection, request->sequence, {to_response(std::move(outcome).error()), {}, {}});
  else if (*outcome)
    answer(connection, request->sequence, std::move(**outcome));
  else
    connection->waiting = true;
}

void Init::answer(const ConnectionPointer& connection, std::uint32_t sequence, Reply reply) {
  if (!connection->socket) return;
  reply.response.sequence = sequence;
  if (!send_message(connection->socket.get(), image::pack(reply.response), reply.descriptors, MSG_DONTWAIT))
    close(connection);
}

Response Init::life() const {
  Response response;
  response.kept = kept_;
  response.first = first_;
  response.ended = ended_;
  response.status = status_;
  response.lost = streams_.log().lost();
  return response;
}

/// Reads or writes a file that holds one number.
Result<pid_t> read_number(const char* path) {
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  char text[32] = {};
  if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) return fail_errno("read {} in the pod", path);
  return static_cast<pid_t>(std::atol(text));
}

Result<void> write_number(const char* path, pid_t number) {
  const Fd file(::open(path, O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(number);
  if (!file || ::write(file.get(), text.data(), text.size()) < 0) return fail_errno("write {} to {}", text, path);
  return {};
}

Result<std::optional<Reply>> Init::execute(const Request& request, std::vector<Fd>& descriptors,
                                           const ConnectionPointer& connection) {
  Reply reply;
  switch (static_cast<Command>(request.command)) {
    case Command::life:
      reply.response = life();
      return reply;
    case Command::start:
    case Command::stub:
      TRY(launch(request, descriptors, connection));
      return std::nullopt;
    case Command::set_first:
      first_ = request.pid;
      return reply;
    case Command::keep:
      kept_ = true;
      return reply;
    case Command::last_pid:
      reply.response.pid = TRY(read_number(last_pid_file));
      return reply;
    case Command::set_last_pid:
      TRY(write_number(last_pid_file, request.pid));
      return reply;
    case Command::signal:
      if (first_ == 0 || first_gone_) return fail(ErrorKind::gone, "the pod's program has ended");
      if (kill(first_, request.number) != 0) return fail_errno("send signal {} to process {}", request.number, first_);
      return reply;
    case Command::subscribe:
      if (descriptors.size() != 1) return fail(ErrorKind::invalid, "a subscription without its socket");
      subscriber_ = std::move(descriptors.front());
      if (ended_ && std::ranges::none_of(events_, &Event::last)) events_.push_back({first_, status_, true});
      return reply;
    case Command::end:
      end(connection, request.sequence);
    case Command::deposit:
    case Command::withdraw:
    case Command::list:
    case Command::forget:
      return execute_on_deposits(request, descriptors);
    case Command::streams:
    case Command::flush_log:
    case Command::attach:
    case Command::terminal:
      return execute_on_streams(request, descriptors);
  }
  return fail(ErrorKind::invalid, "the pod's init doesn't know command {}", request.command);
}

Result<std::optional<Reply>> Init::execute_on_deposits(const Request& request, std::vector<Fd>& descriptors) {
  Reply reply;
  if (request.names.size() != 1) return fail(ErrorKind::invalid, "a deposit without a name");
  const std::string& name = request.names.front();
  switch (static_cast<Command>(request.command)) {
    case Command::deposit:
      if (descriptors.size() != 1) return fail(ErrorKind::invalid, "deposit {} without a descriptor", name);
      if (deposits_.size() >= deposits_limit)
        return fail(ErrorKind::refused, "the pod's init keeps too many descriptors");
      deposits_[name] = std::move(descriptors.front());
      return reply;
    case Command::withdraw: {
      const auto found = deposits_.find(name);
      const int fd = found != deposits_.end() ? found->second.get() : streams_.own_end(name);
      if (fd < 0) return fail(ErrorKind::not_found, "the pod's init keeps no descriptor {}", name);
      reply.descriptors.push_back(fd);
      return reply;
    }
    case Command::list:
      for (const auto& [key, fd] : deposits_)
        if (key.starts_with(name)) reply.response.names.push_back(key);
      return reply;
    default:
      if (name == "stdin-writer")
        streams_.end_input();
      else if (deposits_.erase(name) == 0)
        return fail(ErrorKind::not_found, "the pod's init keeps no descriptor {}", name);
      return reply;
  }
}

Result<std::optional<Reply>> Init::execute_on_streams(const Request& request, std::vector<Fd>& descriptors) {
  Reply reply;
  switch (static_cast<Command>(request.command)) {
    case Command::streams:
      for (const auto& [name, fd] : streams_.ends()) {
        reply.response.names.push_back(name);
        reply.descriptors.push_back(fd);
      }
      return reply;
    case Command::flush_log:
      streams_.flush();
      reply.response.position = streams_.log().position();
      return reply;
    case Command::attach:
      if (descriptors.size() != 1) return fail(ErrorKind::invalid, "a client without its socket");
      reply.response.position = streams_.log().position();
      streams_.attach(std::move(descriptors.front()));
      if (ended_) streams_.finish(status_);
      return reply;
    default: {
      auto [master, slave] = TRY(make_terminal());
      reply.descriptors = {master.get(), slave.get()};
      reply.owned.push_back(std::move(master));
      reply.owned.push_back(std::move(slave));
      return reply;
    }
  }
}

Result<void> Init::launch(const Request& request, const std::vector<Fd>& descriptors,
                          const ConnectionPointer& connection) {
  if (first_gone_) return fail(ErrorKind::gone, "the pod has ended");
  Launching launching;
  launching.asker = connection;
  launching.sequence = request.sequence;
  launching.first = request.first;
  if (static_cast<Command>(request.command) == Command::stub) {
    launching.launched = TRY(launch_stub(request.pid, cgroups_));
  } else {
    if (request.first && first_ != 0) return fail(ErrorKind::refused, "the pod has its first program already");
    auto stdio = streams_.stdio(request.first);
    Program program = request.program;
    if (descriptors.size() == 3)
      for (std::size_t i = 0; i < 3; ++i) stdio[i] = descriptors[i].get();
    else if (!request.first)
      program.terminal = false;  // the pod's belongs to the first program
    launching.launched = TRY(launch_program(program, stdio, cgroups_));
  }
  launching_.push_back(std::move(launching));
  return {};
}

void Init::settle(std::list<Launching>::iterator launching) {
  const Launching done = std::move(*launching);
  launching_.erase(launching);
  const auto outcome = read_outcome(done.launched);
  done.asker->waiting = false;
  if (!outcome) {
    answer(done.asker, done.sequence, {to_response(outcome.error()), {}, {}});
    return;
  }
  ours_.insert(done.launched.process);
  if (done.first) {
    first_ = done.launched.process;
    kept_ = true;
  }
  Reply reply;
  reply.response.pid = done.launched.process;
  reply.descriptors.push_back(done.launched.pidfd.get());
  answer(done.asker, done.sequence, std::move(reply));
}

void Init::reap() {
  signalfd_siginfo ignored;
  while (::read(children_.get(), &ignored, sizeof ignored) > 0) {
  }
  int status = 0;
  pid_t pid = 0;
  while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) ended(pid, status);
  const bool none_left = pid < 0 && errno == ECHILD;
  if (!first_gone_ || ended_) return;
  if (none_left)
    finish();
  else
    kill(-1, SIGKILL);  // whatever was being forked while we killed
}

void Init::ended(pid_t pid, int status) {
  const auto launching =
      std::ranges::find(launching_, pid, [](const Launching& entry) { return entry.launched.process; });
  if (launching != launching_.end()) settle(launching);
  const bool ours = ours_.erase(pid) > 0;
  if (pid == first_ && !first_gone_) {
    first_gone_ = true;
    status_ = status;
    kill(-1, SIGKILL);
  } else if (ours) {
    publish({pid, status, false});
  }
}

void Init::finish() {
  ended_ = true;
  streams_.finish(status_);
  publish({first_, status_, true});
}

void Init::publish(Event event) {
  events_.push_back(event);
  if (events_.size() > events_limit) events_.pop_front();
  send_events();
}

void Init::send_events() {
  while (subscriber_ && !events_.empty()) {
    const auto sent = send_message(subscriber_.get(), image::pack(events_.front()), {}, MSG_DONTWAIT);
    if (!sent) {
      if (sent.error().kind != ErrorKind::busy) subscriber_.reset();
      return;
    }
    events_.pop_front();
  }
}

void Init::end(const ConnectionPointer& connection, std::uint32_t sequence) {
  // Bounded: a process that somebody traces stays a zombie until its tracer looks.
  for (int i = 0; i < 1000; ++i) {
    kill(-1, SIGKILL);
    pid_t pid = 0;
    int status = 0;
    while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0)
      if (pid == first_) status_ = status;
    if (pid < 0 && errno == ECHILD) break;  // before anything else sets errno
    poll(nullptr, 0, 1);
  }
  streams_.finish(status_);
  answer(connection, sequence, {});
  _exit(0);
}

}  // namespace

void run_init(const Setup& setup, std::vector<Fd> descriptors) {
  Init(setup, std::move(descriptors)).live();
}

}  // namespace godwit::pod
