#pragma once

#include <string>
#include <string_view>

#include "value.hpp"

namespace godwit::fault {

/// "MESSAGE PATH = VALUE" (test/faults/liar.cpp).
struct Order {
  std::string message, path, value;
};

/// Does to the message what the order says. Whether there is such a place in it, or may be.
bool obey(Value& message, const Order&);
/// Whether this is a natural number, in digits.
bool is_number(std::string_view text);

}  // namespace godwit::fault
