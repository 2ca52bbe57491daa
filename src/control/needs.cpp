#include "control/needs.hpp"

#include <algorithm>
#include <array>

namespace godwit::control {

namespace {

constexpr std::array<std::string_view, 16> names{
    "none",     "memory", "processors", "descriptors", "address", "machine",     "label", "quota",
    "draining", "owner",  "busy",       "cancelled",   "late",    "unreachable", "hello", "protocol"};

bool satisfies(const Labels& labels, const std::string& wanted) {
  const auto equals = wanted.find('=');
  const auto found = labels.find(wanted.substr(0, equals));
  if (found == labels.end()) return false;
  return equals == std::string::npos || found->second == wanted.substr(equals + 1);
}

}  // namespace

std::vector<std::string> missing_labels(const Labels& labels, const std::vector<std::string>& wanted) {
  std::vector<std::string> missing;
  std::ranges::copy_if(wanted, std::back_inserter(missing),
                       [&](const std::string& label) { return !satisfies(labels, label); });
  return missing;
}

std::string_view to_string(Reason reason) {
  return names.at(static_cast<std::size_t>(reason));
}

Reason reason_named(std::string_view name) {
  const auto found = std::ranges::find(names, name);
  return found == names.end() ? Reason::protocol : static_cast<Reason>(found - names.begin());
}

}  // namespace godwit::control
