#include "cli/commands.hpp"
namespace godwit::cli {
int check(const Common&) {
  return 0;
}
}  // namespace godwit::cli
