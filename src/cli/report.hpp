#pragma once

#include "cli/commands.hpp"

namespace godwit::cli {

/// What a move that succeeded has come to, for people.
void print_report(const Json& report);

}  // namespace godwit::cli
