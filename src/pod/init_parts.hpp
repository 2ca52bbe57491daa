#pragma once

#include <sys/types.h>

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pod/init_execution.hpp"
#include "pod/init_launch.hpp"
#include "pod/init_protocol.hpp"
#include "pod/init_streams.hpp"
#include "pod/log_segments.hpp"

namespace godwit::pod {

/// An answer on its way, with what goes along: borrowed numbers, and what must stay open until it is sent.
struct Reply {
  Response response;
  std::vector<int> descriptors;
  std::vector<Fd> owned;
};

/// PID 1 of a pod: what it holds, and what happens on which event. Commands are in init_commands.cpp.
class Init {
 public:
  Init(const Setup& setup, std::vector<Fd> descriptors);
  [[noreturn]] void live();

 private:
  struct Connection {
    Fd socket;
    bool creator = false;              ///< the one that a fleeting init lives as long as
    bool waiting = false;              ///< for a launch; nothing more is read until it is answered
    std::vector<RaisedThread> raised;  ///< by whoever is at the other end
  };
  struct Launching {
    Launched launched;
    std::shared_ptr<Connection> asker;
    std::uint32_t sequence = 0;
    bool first = false;
    std::string execution;  ///< whose program it is; empty: none's
  };
  using ConnectionPointer = std::shared_ptr<Connection>;

  Result<void> prepare();
  std::vector<Watch> watches();
  void accept();
  void serve(const ConnectionPointer&);
  void close(const ConnectionPointer&);
  /// nullopt: the answer comes later.
  Result<std::optional<Reply>> execute(Request&, std::vector<Fd>& descriptors, const ConnectionPointer&);
  Result<std::optional<Reply>> execute_on_deposits(const Request&, std::vector<Fd>& descriptors);
  Result<std::optional<Reply>> execute_on_streams(const Request&);
  Result<std::optional<Reply>> execute_on_executions(const Request&, std::vector<Fd>& descriptors);
  Result<InitExecution*> execution_of(const Request&);
  Result<InitExecution*> make_execution(const Execution&);
  void close_execution(const std::string& id);
  Result<void> launch(const Request&, const ConnectionPointer&);
  [[nodiscard]] std::pair<Streams*, std::string> streams_of(const std::string& name);
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
  Workload workload_;
  Fd last_pid_;  ///< ns_last_pid of the pod
  LogWriter log_;
  Streams streams_;  ///< of the first program; of the others by their executions
  std::map<std::string, std::unique_ptr<InitExecution>> executions_;
  std::vector<std::unique_ptr<InitExecution>> closed_;  ///< until nothing of this round of the poll refers to them
  Fd children_;
  std::vector<ConnectionPointer> connections_;
  std::list<Launching> launching_;
  std::map<std::string, Fd> deposits_;
  std::deque<Event> events_;
  Fd subscriber_;
  bool kept_ = false;
  pid_t first_ = 0;
  bool first_gone_ = false;  ///< and `status_` is how; the rest is being killed
  bool ended_ = false;       ///< nothing of the pod is left
  int status_ = 0;
};

}  // namespace godwit::pod
