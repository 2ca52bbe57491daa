#include "base/random.hpp"

#include <sys/random.h>

#include "base/bytes.hpp"

namespace godwit {

Result<std::string> random_hex(std::size_t bytes) {
  Bytes random(bytes);
  // getrandom(2) gives up to 256 bytes at once, or fails.
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t got = ::getrandom(random.data() + done, bytes - done, 0);
    if (got < 0 && errno != EINTR) return fail_errno("get random numbers");
    if (got > 0) done += static_cast<std::size_t>(got);
  }
  std::string text;
  for (const std::uint8_t byte : random) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace godwit
