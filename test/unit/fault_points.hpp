#pragma once

#include <functional>
#include <string_view>

namespace godwit::fault {

/// Called at every fault point that is reached, on whatever thread. Set while nothing is under way.
extern std::function<void(std::string_view point)> seen;

}  // namespace godwit::fault
