/// What a pod's init does on request.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "pod/init_parts.hpp"

namespace godwit::pod {

namespace {

/// A quarter of the init's descriptors stays free of deposits: without any for connections, messages and streams it
/// could answer nobody, not even the next daemon.
std::size_t deposits_limit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur / 4 * 3 : 0;
}

/// Reads or writes a file that holds one number.
Result<pid_t> read_number(int file) {
  char text[32] = {};
  if (::pread(file, text, sizeof text - 1, 0) <= 0) return fail_errno("read a number in the pod");
  return static_cast<pid_t>(std::atol(text));
}

Result<void> write_number(int file, pid_t number) {
  const std::string text = std::to_string(number);
  if (::pwrite(file, text.data(), text.size(), 0) < 0) return fail_errno("write {} in the pod", text);
  return {};
}

}  // namespace

Response Init::life() const {
  Response response;
  response.kept = kept_;
  response.first = first_;
  response.ended = ended_;
  response.status = status_;
  response.lost = log_.lost();
  response.input_ended = streams_.input_ended();
  return response;
}

Result<std::optional<Reply>> Init::execute(Request& request, std::vector<Fd>& descriptors,
                                           const ConnectionPointer& connection) {
  Reply reply;
  switch (static_cast<Command>(request.command)) {
    case Command::life:
      reply.response = life();
      return reply;
    case Command::start:
    case Command::stub:
    case Command::execute:
      TRY(launch(request, connection));
      return std::nullopt;
    case Command::set_first:
      first_ = request.pid;
      return reply;
    case Command::keep:
      kept_ = true;
      return reply;
    case Command::last_pid:
      reply.response.pid = TRY(read_number(last_pid_.get()));
      return reply;
    case Command::set_last_pid:
      TRY(write_number(last_pid_.get(), request.pid));
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
    case Command::raising:
      connection->raised = std::move(request.raised);
      return reply;
    case Command::end:
      end(connection, request.sequence);
    case Command::deposit:
    case Command::withdraw:
    case Command::list:
    case Command::forget:
      return execute_on_deposits(request, descriptors);
    case Command::streams:
    case Command::flush:
      return execute_on_streams(request);
    case Command::executions:
    case Command::execution:
    case Command::attach:
    case Command::restore:
    case Command::close:
      return execute_on_executions(request, descriptors);
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
      if (deposits_.size() >= deposits_limit())
        return fail(ErrorKind::refused, "the pod's init keeps too many descriptors");
      deposits_[name] = std::move(descriptors.front());
      return reply;
    case Command::withdraw: {
      const auto found = deposits_.find(name);
      const auto [streams, end] = streams_of(name);
      const int fd = found != deposits_.end() ? found->second.get() : streams->own_end(end);
      if (fd < 0) return fail(ErrorKind::not_found, "the pod's init keeps no descriptor {}", name);
      reply.descriptors.push_back(fd);
      return reply;
    }
    case Command::list:
      for (const auto& [key, fd] : deposits_)
        if (key.starts_with(name)) reply.response.names.push_back(key);
      return reply;
    default:
      if (const auto [streams, end] = streams_of(name); end == "stdin-writer")
        streams->end_input();
      else if (deposits_.erase(name) == 0)
        return fail(ErrorKind::not_found, "the pod's init keeps no descriptor {}", name);
      return reply;
  }
}

/// A name of one of the init's ends, without the execution in front.
std::pair<Streams*, std::string> Init::streams_of(const std::string& name) {
  const auto slash = name.find('/');
  const auto found = slash == std::string::npos ? executions_.end() : executions_.find(name.substr(0, slash));
  if (found == executions_.end()) return {&streams_, name};
  return {&found->second->streams(), name.substr(slash + 1)};
}

Result<std::optional<Reply>> Init::execute_on_streams(const Request& request) {
  Reply reply;
  if (static_cast<Command>(request.command) == Command::flush) {
    streams_.drain();
    log_.end_segment();
    for (const auto& [id, execution] : executions_) execution->streams().drain();
    return reply;
  }
  const bool first = request.names.empty();
  for (const auto& [name, fd] : first ? streams_.ends() : TRY(execution_of(request))->streams().ends()) {
    reply.response.names.push_back(name);
    reply.descriptors.push_back(fd);
  }
  return reply;
}

Result<InitExecution*> Init::execution_of(const Request& request) {
  const auto found = request.names.size() == 1 ? executions_.find(request.names.front()) : executions_.end();
  if (found == executions_.end()) return fail(ErrorKind::not_found, "the pod has no such program any more");
  return found->second.get();
}

Result<InitExecution*> Init::make_execution(const Execution& facts) {
  if (!is_execution(facts.id)) return fail(ErrorKind::invalid, "'{}' can't be the name of an execution", facts.id);
  if (executions_.size() >= executions_limit)
    return fail(ErrorKind::refused, "{} programs run beside the pod's first: no more at a time", executions_limit);
  auto made = std::make_unique<InitExecution>(facts);
  TRY(made->streams().open(facts.terminal, facts.input));
  const auto [at, inserted] = executions_.emplace(facts.id, std::move(made));
  if (!inserted) return fail(ErrorKind::busy, "execution {} is there already", facts.id);
  return at->second.get();
}

void Init::close_execution(const std::string& id) {
  const auto found = executions_.find(id);
  if (found == executions_.end()) return;
  closed_.push_back(std::move(found->second));
  executions_.erase(found);
}

Result<std::optional<Reply>> Init::execute_on_executions(const Request& request, std::vector<Fd>& descriptors) {
  Reply reply;
  switch (static_cast<Command>(request.command)) {
    case Command::executions:
      for (const auto& [id, execution] : executions_) reply.response.executions.push_back(execution->summary());
      return reply;
    case Command::execution:
      reply.response.executions.push_back(TRY(execution_of(request))->facts());
      return reply;
    case Command::attach:
      if (descriptors.size() != 1) return fail(ErrorKind::invalid, "a reader without its socket");
      TRY(TRY(execution_of(request))->attach(request.place, std::move(descriptors.front())));
      return reply;
    case Command::restore: {
      const auto found = executions_.find(request.execution.id);
      (found != executions_.end() ? found->second.get() : TRY(make_execution(request.execution)))
          ->restore(request.execution);
      return reply;
    }
    default:
      TRY(execution_of(request));
      close_execution(request.names.front());
      return reply;
  }
}

Result<void> Init::launch(const Request& request, const ConnectionPointer& connection) {
  if (first_gone_) return fail(ErrorKind::gone, "the pod has ended");
  Launching launching;
  launching.asker = connection;
  launching.sequence = request.sequence;
  const auto command = static_cast<Command>(request.command);
  const Identity identity{request.user, request.capabilities};
  if (command == Command::stub) {
    const auto builder = deposits_.find("builder");
    launching.launched =
        TRY(launch_stub(request.pid, workload_, builder == deposits_.end() ? -1 : builder->second.get()));
  } else if (command == Command::start) {
    if (first_ != 0) return fail(ErrorKind::refused, "the pod has its first program already");
    launching.first = true;
    launching.launched = TRY(launch_program(request.program, identity, streams_.stdio(), workload_));
  } else {
    const auto* execution = TRY(make_execution(request.execution));
    launching.execution = request.execution.id;
    auto launched = launch_program(request.program, identity, execution->streams().stdio(), workload_);
    if (!launched) close_execution(launching.execution);
    launching.launched = TRY(std::move(launched));
  }
  launching_.push_back(std::move(launching));
  return {};
}

}  // namespace godwit::pod
