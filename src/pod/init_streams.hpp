#pragma once

#include <array>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "pod/frames.hpp"

/// The init's ends of a program's streams: the only reader of the output.
namespace godwit::pod {

/// Something to wait for in the init's poll, and what to do then.
struct Watch {
  int fd = -1;
  short events = 0;
  std::function<void(short)> act;
};

class Streams {
 public:
  using Sink = std::function<void(FrameKind, BytesView)>;
  /// `sink` gets the output.
  explicit Streams(Sink sink) : sink_(std::move(sink)) {}

  /// A terminal, or pipes for stdout and stderr and, with `input`, stdin. In the pod's root: its devpts is used.
  Result<void> open(bool terminal, bool input);

  /// Descriptors 0, 1, 2 for the program.
  [[nodiscard]] std::array<int, 3> stdio() const;
  /// The pod's ends by name.
  [[nodiscard]] std::vector<std::pair<std::string, int>> ends() const;
  /// "stdin-writer", "terminal-master"; -1 when there is none.
  [[nodiscard]] int own_end(std::string_view name) const;
  /// The program reads end of file after what has been written.
  void end_input() { writer_.reset(); }
  [[nodiscard]] bool input_ended() const { return stdin_ && !writer_; }

  /// Everything that stands in the streams goes to the sink now.
  void drain();
  /// What is written from now on goes there.
  void watch(std::vector<Watch>&);

 private:
  struct Source {
    FrameKind kind;
    Fd read;  ///< non-blocking
  };

  bool read_some(const Source&);

  Sink sink_;
  std::vector<Source> sources_;
  Fd stdin_, stdout_, stderr_, slave_;  ///< the pod's ends. Held too, so that ours never sees an end of file
  Fd writer_;                           ///< non-blocking end of stdin
};

}  // namespace godwit::pod
