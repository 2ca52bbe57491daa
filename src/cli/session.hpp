#pragma once

#include <functional>

#include "base/result.hpp"
#include "base/stream.hpp"
#include "cli/client.hpp"
#include "pod/frames.hpp"

namespace godwit::cli {

/// How a program's streams are joined to ours.
struct Session {
  bool input = false;     ///< our stdin is its input
  bool terminal = false;  ///< our terminal, raw, is its terminal; Ctrl-P Ctrl-Q lets go of it
  /// Gets SIGINT, SIGTERM, SIGHUP and SIGQUIT instead of us; none: they end us.
  std::function<void(int signal)> on_signal;
};

struct SessionEnd {
  bool detached = false;  ///< by Ctrl-P Ctrl-Q; the program goes on
  int status = 0;         ///< wait status otherwise
};

/// What of a pod is joined.
struct Joined {
  std::string pod;
  std::string execution;  ///< empty: its first program
  bool tail = false;      ///< without what was written before
  bool follow = true;     ///< to its end, and not only what is there
};
/// Joins a program of a pod to our stdin, stdout and stderr until it has ended, wherever the pod goes
/// and whatever becomes of the daemon that we ask: the next one is asked to go on where that one has left off.
Result<SessionEnd> join_pod(const Client&, const Joined&, const Session&);
/// The same with nothing but its output: `sink` gets every frame, and says false to end this.
Result<void> read_pod(const Client&, const Joined&, const std::function<bool(const pod::Frame&)>& sink);

}  // namespace godwit::cli
