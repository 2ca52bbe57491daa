#include "pod/init.hpp"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "pod/init_parts.hpp"
#include "pod/root.hpp"

namespace godwit::pod {

namespace {

constexpr std::size_t connections_limit = 16;
constexpr std::size_t events_limit = 1024;

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

}  // namespace

Init::Init(const Setup& setup, std::vector<Fd> descriptors)
    : setup_(setup),
      control_(std::move(descriptors[setup_control])),
      listener_(std::move(descriptors[setup_listener])),
      init_procs_(std::move(descriptors[setup_cgroup_init])),
      log_(std::move(descriptors[setup_log])),
      streams_([this](FrameKind kind, BytesView bytes) { log_.append(kind, bytes); }),
      kept_(!setup.fleeting) {
  workload_.directory = std::move(descriptors[setup_cgroup_work]);
  for (std::size_t i = setup_cgroup_limits; i < descriptors.size(); ++i)
    workload_.limits.push_back(std::move(descriptors[i]));
}

Result<void> Init::prepare() {
  std::vector<int> keep = {control_.get(), listener_.get(), init_procs_.get(), workload_.directory.get(),
                           log_.directory()};
  for (const Fd& procs : workload_.limits) keep.push_back(procs.get());
  close_all_but(std::move(keep));
  // It keeps one for each process of the pod that is owed pages, and they may be many. The workload has its own limit.
  if (getrlimit(RLIMIT_NOFILE, &workload_.descriptors) != 0) return fail_errno("read the limit on descriptors");
  const rlim_t most = workload_.descriptors.rlim_max;
  const rlimit raised{most, most};
  setrlimit(RLIMIT_NOFILE, &raised);
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
  // A rebuilt process gets its number through it, also where nobody else may write there.
  last_pid_ = Fd(::open("/proc/sys/kernel/ns_last_pid", O_RDWR | O_CLOEXEC));
  if (!last_pid_) return fail_errno("open ns_last_pid in the pod");
  if (setup_.bounded) TRY(close_node_settings());

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
  const auto connection = std::make_shared<Connection>(Connection{std::move(control_), true, false, {}});
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
  closed_.clear();
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
  for (const auto& [id, execution] : executions_) execution->watch(all);
  return all;
}

void Init::accept() {
  Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket || connections_.size() >= connections_limit) return;
  connections_.push_back(std::make_shared<Connection>(Connection{std::move(socket), false, false, {}}));
}

void Init::close(const ConnectionPointer& connection) {
  connection->socket.reset();
  // Its daemon has died within a freeze: busy threads would keep everybody off their processors, the next daemon too.
  let_down(std::exchange(connection->raised, {}));
  // Whoever was making this pod has died. With us dies everything in the pod.
  if (connection->creator && !kept_) _exit(0);
}

void Init::serve(const ConnectionPointer& connection) {
  if (!connection->socket) return;
  auto message = receive_whatever_came(connection->socket.get(), MSG_DONTWAIT);
  if (!message) {
    if (message.error().kind != ErrorKind::busy) close(connection);
    return;
  }
  auto request = image::unpack<Request>(message->bytes);
  if (!request) {
    close(connection);
    return;
  }
  auto outcome = message->cut_short ? fail(ErrorKind::refused, "the pod's init has no room for another descriptor")
                                    : execute(*request, message->descriptors, connection);
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

void Init::settle(std::list<Launching>::iterator launching) {
  const Launching done = std::move(*launching);
  launching_.erase(launching);
  const auto outcome = read_outcome(done.launched);
  done.asker->waiting = false;
  if (!outcome) {
    close_execution(done.execution);
    answer(done.asker, done.sequence, {to_response(outcome.error()), {}, {}});
    return;
  }
  if (const auto execution = executions_.find(done.execution); execution != executions_.end())
    execution->second->started(done.launched.process);
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
  for (const auto& [id, execution] : executions_)
    if (execution->runs_as(pid)) execution->ended(status);
  if (pid != first_ || first_gone_) return;
  first_gone_ = true;
  status_ = status;
  kill(-1, SIGKILL);
}

void Init::finish() {
  ended_ = true;
  streams_.drain();
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
  streams_.drain();
  answer(connection, sequence, {});
  _exit(0);
}

void run_init(const Setup& setup, std::vector<Fd> descriptors) {
  Init(setup, std::move(descriptors)).live();
}

}  // namespace godwit::pod
