#include "fault_points.hpp"

#include "base/fault.hpp"

/// Stands before the library's, which do nothing.
namespace godwit::fault {

std::function<void(std::string_view)> seen;

void reach(std::string_view point) {
  if (seen) seen(point);
}

std::optional<Bytes> altered(Flow, int, std::span<const iovec>) {
  return {};
}

}  // namespace godwit::fault
