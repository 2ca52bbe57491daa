#pragma once

#include <memory>
#include <optional>

#include "control/ownership.hpp"
#include "migrate/recover.hpp"
#include "node/doubts.hpp"

namespace godwit::node {

/// A migration that an earlier daemon was in the middle of, of a pod that this one has found frozen.
struct Interrupted {
  migrate::Journal journal;
  control::Claim claim;
  std::shared_ptr<Doubts::Doubt> doubt;
  bool asked = false;  ///< the claim has begun
};

}  // namespace godwit::node
