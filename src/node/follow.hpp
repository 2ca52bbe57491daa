#pragma once

#include <functional>

#include "node/stream.hpp"

namespace godwit::node {

/// A stream of a pod's frames from where it is now, for as long as it stays there.
class FrameSource {
 public:
  virtual ~FrameSource() = default;
  virtual Stream& stream() = 0;
};
/// From a place on; `not_found` when there is no such pod any more.
using OpenSource = std::function<Result<std::unique_ptr<FrameSource>>(const StreamOptions&)>;

/// Stays with a pod for `client`, wherever the pod goes and whatever breaks in between: a stream that ends before the
/// pod has is opened anew where it left off, for half a minute. Input of the client's that nobody has accepted is sent
/// again. Every frame of the pod goes to `sink`, an exit, end or failure as the last; it says false to end this.
///
/// With `options.places` the sink gets frame::position and frame::accepted too (counted over all streams), so that who
/// reads there can do the same: a command follows its daemon as that follows the pod's.
void follow(Stream& client, StreamOptions options, std::unique_ptr<FrameSource> first, const OpenSource& open,
            const std::function<bool(const pod::Frame&)>& sink);

}  // namespace godwit::node
