#pragma once

#include <functional>

#include "base/result.hpp"
#include "base/stream.hpp"
#include "cli/client.hpp"

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

/// Joins the frames on `connection` to our stdin, stdout and stderr until the program has ended.
Result<SessionEnd> run_session(Stream& connection, const Session&);

/// The same with the streams of a pod's first program, for as long as the pod runs, wherever it goes and whatever
/// becomes of the daemon that we ask: the next one is asked to go on where that one has left off. `tail`: without what
/// was written before.
Result<SessionEnd> join_pod(const Client&, const std::string& pod, bool tail, const Session&);

}  // namespace godwit::cli
