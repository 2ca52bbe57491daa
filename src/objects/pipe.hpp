#pragma once

#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "image/codec.hpp"

namespace godwit::objects {

/// What stands in a pipe. In packet mode (O_DIRECT at a writing end) one element per packet, otherwise cut anywhere.
struct PipeContent {
  std::vector<std::vector<std::uint8_t>> chunks;
  bool packets = false;
  MSGPACK_DEFINE_MAP(chunks, packets)
};

/// Copies what stands in a pipe by tee(2): nothing is consumed. `fd` must be open for reading.
Result<PipeContent> peek_pipe(int fd, bool packets);

/// Writes the content to an empty pipe large enough for it. `fd` must be open for writing.
Result<void> fill_pipe(int fd, const PipeContent&);

}  // namespace godwit::objects
