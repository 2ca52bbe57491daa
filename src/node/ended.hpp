#pragma once

#include <optional>
#include <string>

#include "image/codec.hpp"
#include "pod/spec.hpp"

namespace godwit::node {

/// What is kept of a pod whose program has ended, beside its log, until it is removed: also over a restart of ours.
struct Ended {
  pod::Spec spec;
  int status = 0;    ///< as waitpid gives it
  std::string note;  ///< why, where that isn't the program's own affair
  MSGPACK_DEFINE_MAP(spec, status, note)
};

/// Writes `directory`/ended, whole or not at all.
Result<void> write_ended(const std::string& directory, const Ended&);
/// None when there is no such file.
Result<std::optional<Ended>> read_ended(const std::string& directory);

}  // namespace godwit::node
