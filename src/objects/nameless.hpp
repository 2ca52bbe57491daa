#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace godwit::objects {

/// A new, empty file that had this name and has none any more: /proc shows it with " (deleted)". In the directory of
/// the name where that is there, else in the root. Open for reading and writing; on the pod's workshop.
Result<Fd> make_deleted_file(const std::string& path);

}  // namespace godwit::objects
