#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/stream.hpp"
#include "image/codec.hpp"

/// What the targets have in common. Each defines `one` (an input) and `seeds` (small inputs that are right, made by the
/// same encoders as the real ones), and says FUZZ_TARGET.
namespace godwit::fuzz {

/// For what must hold whatever comes in.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "doesn't hold: %s\n", what);
  std::abort();
}

/// What was understood is written and read back the same.
template <typename T>
std::optional<T> round_trip(BytesView bytes, const image::Limits& limits = {}) {
  auto value = image::unpack<T>(bytes, limits);
  if (!value) return std::nullopt;
  const Bytes once = image::pack(*value);
  auto again = image::unpack<T>(BytesView(once));
  require(again.has_value() && image::pack(*again) == once, __PRETTY_FUNCTION__);
  return std::move(*value);
}

/// A connection on which exactly these bytes come in; what is written to it goes nowhere.
struct Wire {
  Fd peer;
  Stream stream;
  explicit Wire(BytesView bytes) {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "a pair of sockets");
    peer.reset(ends[0]);
    stream = Stream(Fd(ends[1]));
    while (!bytes.empty()) {
      const ssize_t sent = ::send(peer.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent <= 0) break;  // as much as the socket takes: inputs are small
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
    ::shutdown(peer.get(), SHUT_WR);
  }
};

inline void append(Bytes& to, BytesView bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}
inline Bytes bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

/// Writes a target's seeds into GODWIT_FUZZ_SEEDS and ends, when that is set.
inline void maybe_write(const std::vector<Bytes>& seeds) {
  const char* directory = std::getenv("GODWIT_FUZZ_SEEDS");
  if (directory == nullptr) return;
  std::filesystem::create_directories(directory);
  int number = 0;
  for (const auto& seed : seeds) {
    std::ofstream file(std::filesystem::path(directory) / fmt::format("made-{:02}", number++), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
  }
  std::exit(0);
}

}  // namespace godwit::fuzz

#define FUZZ_TARGET(one, seeds)                                                       \
  extern "C" int LLVMFuzzerInitialize(int*, char***) {                                \
    godwit::fuzz::maybe_write(seeds());                                               \
    return 0;                                                                         \
  }                                                                                   \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
    one(godwit::BytesView(data, size));                                               \
    return 0;                                                                         \
  }
