#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.hpp"
#include "image/codec.hpp"

namespace godwit::pod {

/// A program that was started beside the pod's first, with streams of its own. What it writes waits in the pod's init
/// until whoever reads it says that it is there: nothing is lost or told twice, wherever the pod goes and whichever
/// daemon serves it. With too much of it waiting the program waits too, as at a full pipe.
struct Execution {
  std::string id;
  pid_t process = 0;  ///< as the pod knows it; 0: not started yet
  bool terminal = false;
  bool input = false;
  bool input_ended = false;
  bool ended = false;  ///< and `status` is how, as waitpid gives it
  int status = 0;
  std::uint64_t begin = 0;  ///< bytes of frames that are not kept any more
  Bytes output;             ///< the frames after those (pod/frames.hpp)
  MSGPACK_DEFINE_MAP(id, process, terminal, input, input_ended, ended, status, begin, output)
};

inline constexpr std::size_t executions_limit = 64;  ///< of one pod, at a time

/// Digits and letters of a number in hex, 32 at most: it becomes part of streams' names ("ID/stdout").
[[nodiscard]] constexpr bool is_execution(std::string_view id) {
  return !id.empty() && id.size() <= 32 && id.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace godwit::pod
