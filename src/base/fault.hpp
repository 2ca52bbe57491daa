#pragma once

#include <string_view>

/// Named places at which a test makes something die. What acts on them is linked into the test daemon only
/// (test/faults/fault.cpp); everywhere else reaching one is a call of an empty function.
namespace godwit::fault {

void reach(std::string_view point);

}  // namespace godwit::fault
