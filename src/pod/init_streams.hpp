#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "pod/log_segments.hpp"

/// The init's ends of a pod's streams: the only reader of the output, which goes to the log and to whoever is attached.
namespace godwit::pod {

/// Something to wait for in the init's poll, and what to do then.
struct Watch {
  int fd = -1;
  short events = 0;
  std::function<void(short)> act;
};

class Streams {
 public:
  explicit Streams(Fd log_directory) : log_(std::move(log_directory)) {}

  /// A terminal, or pipes for stdout and stderr and, with `input`, stdin. In the pod's root: its devpts is used.
  Result<void> open(bool terminal, bool input);

  /// Descriptors 0, 1, 2 for a program: for the first, and for one beside it.
  [[nodiscard]] std::array<int, 3> stdio(bool first) const;
  /// The pod's ends by name.
  [[nodiscard]] std::vector<std::pair<std::string, int>> ends() const;
  /// "stdin-writer", "terminal-master"; -1 when there is none.
  [[nodiscard]] int own_end(const std::string& name) const;
  /// The program reads end of file after what has been written.
  void end_input();

  void attach(Fd client);
  /// Everything that stands in the streams goes to the log now, and the log's segment ends.
  void flush();
  /// No process is left: the rest of the output, then every client is told how it ended.
  void finish(int status);

  void watch(std::vector<Watch>&);
  [[nodiscard]] const LogWriter& log() const { return log_; }

 private:
  struct Client {
    Fd socket;
    Bytes received, to_send;
    bool closing = false;  ///< once `to_send` is out
  };
  struct Source {
    FrameKind kind;
    Fd read;  ///< non-blocking
  };

  void drain();
  bool read_some(const Source&);
  void receive(Client&);
  void handle(const Frame&);
  void send(Client&) const;
  void write_input();
  [[nodiscard]] bool held_up() const;

  LogWriter log_;
  std::vector<Source> sources_;
  Fd stdin_, stdout_, stderr_, slave_;  ///< the pod's ends. Held too, so that ours never sees an end of file
  Fd writer_;                           ///< non-blocking end of stdin
  Bytes input_;                         ///< on its way to the program
  bool input_ended_ = false;
  std::vector<std::shared_ptr<Client>> clients_;
};

/// A new terminal in the devpts of the caller's root: master (non-blocking), slave.
Result<std::pair<Fd, Fd>> make_terminal();

}  // namespace godwit::pod
