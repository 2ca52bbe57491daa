/// What a pod's init does on request.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "pod/init_parts.hpp"

namespace godwit::pod {

namespace {

constexpr std::size_t deposits_limit = 4096;
constexpr const char* last_pid_file = "/proc/sys/kernel/ns_last_pid";

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

}  // namespace

Response Init::life() const {
  Response response;
  response.kept = kept_;
  response.first = first_;
  response.ended = ended_;
  response.status = status_;
  response.lost = streams_.log().lost();
  return response;
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
    const auto builder = deposits_.find("builder");
    launching.launched =
        TRY(launch_stub(request.pid, cgroups_, builder == deposits_.end() ? -1 : builder->second.get()));
  } else {
    if (request.first && first_ != 0) return fail(ErrorKind::refused, "the pod has its first program already");
    auto stdio = streams_.stdio(request.first);
    Program program = request.program;
    if (descriptors.size() == 3)
      for (std::size_t i = 0; i < 3; ++i) stdio[i] = descriptors[i].get();
    else if (!request.first)
      program.terminal = false;  // the pod's belongs to the first program
    launching.launched = TRY(launch_program(program, {request.user, request.capabilities}, stdio, cgroups_));
  }
  launching_.push_back(std::move(launching));
  return {};
}

}  // namespace godwit::pod
