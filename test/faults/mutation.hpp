#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

#include "base/bytes.hpp"

/// What a liar makes of something that it was about to say: nothing but seed and number decide.
namespace godwit::fault {

class Chance {
 public:
  Chance() = default;
  Chance(std::uint64_t seed, std::uint64_t number) {
    std::seed_seq mixed{seed, seed >> 32, number, number >> 32};
    engine_.seed(mixed);
  }
  /// 0 to `count` - 1.
  std::size_t below(std::size_t count) { return count == 0 ? 0 : engine_() % count; }
  bool one_in(std::size_t count) { return below(count) == 0; }
  std::uint64_t bits() { return engine_(); }
  template <typename Choices>
  auto of(const Choices& choices) {
    return choices[below(std::size(choices))];
  }

 private:
  std::mt19937_64 engine_;
};

/// Changes a frame whose head of `head` bytes begins with the length of what follows. What was done.
std::string change_frame(Bytes& frame, std::size_t head, bool big_endian, Chance&);
/// Changes the head of page records (migrate/page_stream), or a byte that stands alone.
std::string change_records(Bytes&, Chance&);
/// The length in a frame's first four bytes.
void set_length(Bytes& frame, std::uint32_t length, bool big_endian);

}  // namespace godwit::fault
