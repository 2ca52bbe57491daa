#include "pod/pod.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/fault.hpp"
#include "kernel/procfs.hpp"
#include "pod/pod_parts.hpp"

namespace godwit::pod {

namespace {

constexpr timeval answer_limit = {30, 0};

Request named(const std::string& name) {
  Request request;
  request.names = {name};
  return request;
}

Request about(PodPid process) {
  Request request;
  request.pid = process.value;
  return request;
}

}  // namespace

Result<HostPid> process_of(int pidfd) {
  const auto info = TRY(kernel::read_file(HostPid{getpid()}, fmt::format("fdinfo/{}", pidfd)));
  const auto line = info.find("Pid:");
  if (line == std::string::npos) return fail(ErrorKind::failed, "descriptor {} is no pidfd", pidfd);
  return HostPid{std::max(0, std::atoi(info.c_str() + line + 4))};
}

Result<void> Pod::Parts::use_control(Fd socket) {
  if (setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &answer_limit, sizeof answer_limit) != 0)
    return fail_errno("limit the time for an answer of the pod's init");
  control = std::move(socket);
  return {};
}

Result<Answer> Pod::Parts::answer_to(std::uint32_t number) const {
  for (;;) {
    auto message = TRY(receive_message(control.get()));
    Answer answer{TRY(image::unpack<Response>(message.bytes)), std::move(message.descriptors)};
    if (answer.response.sequence != number) continue;
    if (answer.response.kind >= 0) return std::unexpected(to_error(answer.response));
    return answer;
  }
}

Result<Answer> Pod::Parts::ask(Command command, Request request, const std::vector<int>& descriptors) {
  const std::lock_guard lock(asking);
  if (!control) return fail(ErrorKind::gone, "pod {} has been torn down", spec.name);
  request.command = static_cast<std::uint8_t>(command);
  request.sequence = ++sequence;
  TRY(send_message(control.get(), image::pack(request), descriptors));
  return answer_to(request.sequence);
}

Result<void> Pod::Parts::subscribe() {
  auto pair = TRY(seqpacket_pair());
  TRY(ask(Command::subscribe, {}, {pair.theirs.get()}));
  events = std::move(pair.ours);
  return {};
}

Pod::Pod(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Pod::~Pod() {
  if (!parts_->kept && !parts_->destroyed) (void)destroy();
}

const Spec& Pod::spec() const {
  return parts_->spec;
}

HostPid Pod::init() const {
  return parts_->init;
}

const Namespaces& Pod::namespaces() const {
  return parts_->namespaces;
}

Gate& Pod::gate() {
  return parts_->port->gate();
}

Cgroup& Pod::workload() {
  return parts_->workload;
}

std::string Pod::upper() const {
  return parts_->directory.upper();
}

std::string Pod::directory() const {
  return parts_->directory.path();
}

std::string Pod::log_directory() const {
  return parts_->directory.log();
}

Result<Started> Pod::Parts::launch(Command command, Request request) {
  request.user = spec.user;
  request.capabilities = spec.capabilities;
  const auto answer = TRY(ask(command, std::move(request)));
  if (answer.descriptors.size() != 1) return fail(ErrorKind::failed, "the pod's init gave no pidfd");
  return Started{TRY(process_of(answer.descriptors.front().get())), PodPid{answer.response.pid}};
}

Result<Started> Pod::start(const Program& program) {
  Request request;
  request.program = program;
  const auto started = TRY(parts_->launch(Command::start, std::move(request)));
  parts_->kept = true;
  TRY(parts_->directory.mark_kept());
  return started;
}

Result<Started> Pod::execute(const std::string& id, const Program& program) {
  Request request;
  request.program = program;
  request.execution = {.id = id, .terminal = program.terminal, .input = program.input};
  return parts_->launch(Command::execute, std::move(request));
}

Result<std::vector<Execution>> Pod::executions() {
  return TRY(parts_->ask(Command::executions)).response.executions;
}

Result<Execution> Pod::execution(const std::string& id) {
  auto answer = TRY(parts_->ask(Command::execution, named(id)));
  if (answer.response.executions.size() != 1) return fail(ErrorKind::failed, "the pod's init gave no execution");
  return std::move(answer.response.executions.front());
}

Result<void> Pod::restore(const Execution& execution) {
  Request request;
  request.execution = execution;
  TRY(parts_->ask(Command::restore, std::move(request)));
  return {};
}

Result<void> Pod::attach(const std::string& execution, std::uint64_t place, int reader) {
  Request request = named(execution);
  request.place = place;
  TRY(parts_->ask(Command::attach, std::move(request), {reader}));
  return {};
}

Result<void> Pod::close(const std::string& execution) {
  TRY(parts_->ask(Command::close, named(execution)));
  return {};
}

Result<Stub> Pod::stub(PodPid process) {
  const auto answer = TRY(parts_->ask(Command::stub, about(process)));
  if (answer.descriptors.size() != 1) return fail(ErrorKind::failed, "the pod's init gave no pidfd");
  const HostPid host = TRY(process_of(answer.descriptors.front().get()));
  if (host.value == 0) return fail(ErrorKind::gone, "the stub of process {} has died", process.value);
  return Stub{host};
}

Result<void> Pod::set_first(PodPid process) {
  TRY(parts_->ask(Command::set_first, about(process)));
  return {};
}

Result<void> Pod::keep() {
  TRY(parts_->ask(Command::keep));
  parts_->kept = true;
  return parts_->directory.mark_kept();
}

Result<Life> Pod::life() {
  const auto answer = TRY(parts_->ask(Command::life));
  Life life;
  life.kept = answer.response.kept;
  if (answer.response.first != 0) life.first = PodPid{answer.response.first};
  if (answer.response.ended) life.ended = answer.response.status;
  life.lost_output = answer.response.lost;
  life.input_ended = answer.response.input_ended;
  return life;
}

Result<void> Pod::signal(int signal) {
  Request request;
  request.number = signal;
  TRY(parts_->ask(Command::signal, std::move(request)));
  return {};
}

Result<std::map<std::string, Fd>> Pod::streams(const std::string& execution) {
  auto answer = TRY(parts_->ask(Command::streams, execution.empty() ? Request{} : named(execution)));
  if (answer.descriptors.size() != answer.response.names.size())
    return fail(ErrorKind::failed, "the pod's init gave streams without names");
  const std::string prefix = execution.empty() ? "" : execution + "/";
  std::map<std::string, Fd> streams;
  for (std::size_t i = 0; i < answer.descriptors.size(); ++i)
    streams.emplace(prefix + answer.response.names[i], std::move(answer.descriptors[i]));
  return streams;
}

Result<void> Pod::deposit(const std::string& name, int fd) {
  TRY(parts_->ask(Command::deposit, named(name), {fd}));
  return {};
}

Result<Fd> Pod::withdraw(const std::string& name) {
  auto answer = TRY(parts_->ask(Command::withdraw, named(name)));
  if (answer.descriptors.size() != 1) return fail(ErrorKind::failed, "the pod's init gave no descriptor");
  return std::move(answer.descriptors.front());
}

Result<void> Pod::forget(const std::string& name) {
  TRY(parts_->ask(Command::forget, named(name)));
  return {};
}

Result<std::vector<std::string>> Pod::deposits(const std::string& prefix) {
  return TRY(parts_->ask(Command::list, named(prefix))).response.names;
}

Result<void> Pod::raising(std::vector<RaisedThread> threads) {
  Request request;
  request.raised = std::move(threads);
  TRY(parts_->ask(Command::raising, std::move(request)));
  return {};
}

Result<void> Pod::flush() {
  TRY(parts_->ask(Command::flush));
  return {};
}

Result<PodPid> Pod::last_pid() {
  return PodPid{TRY(parts_->ask(Command::last_pid)).response.pid};
}

Result<void> Pod::set_last_pid(PodPid process) {
  TRY(parts_->ask(Command::set_last_pid, about(process)));
  return {};
}

Result<ClockReading> Pod::clocks() const {
  return read_clocks(parts_->init);
}

int Pod::events_fd() const {
  return parts_->events.get();
}

Result<std::optional<int>> Pod::next_end() {
  if (!parts_->events) return fail(ErrorKind::gone, "pod {} has been torn down", parts_->spec.name);
  for (;;) {
    auto message = receive_message(parts_->events.get(), MSG_DONTWAIT);
    if (!message && message.error().kind == ErrorKind::busy) return std::nullopt;
    if (!message && message.error().kind == ErrorKind::gone)
      return fail(ErrorKind::gone, "the init of pod {} has died", parts_->spec.name);
    if (!message) return std::unexpected(std::move(message).error());
    const auto event = TRY(image::unpack<Event>(message->bytes));
    if (event.last) return event.status;
  }
}

Result<void> Pod::deposit_gate() {
  for (const auto& [name, fd] : gate().descriptors()) {
    TRY(deposit("gate/" + name, fd));
    fault::reach("gate.half-kept");
  }
  return {};
}

Result<void> Pod::forget_gate() {
  for (const auto& [name, fd] : gate().descriptors()) {
    TRY(forget("gate/" + name));
    fault::reach("gate.half-forgotten");
  }
  return {};
}

const Port& Pod::port() const {
  return *parts_->port;
}

Result<void> Pod::connect() {
  return parts_->port->connect();
}

Result<void> Pod::announce() {
  return parts_->port->announce();
}

}  // namespace godwit::pod
