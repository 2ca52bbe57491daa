#pragma once

#include <array>
#include <cstdint>

/// What the explorer's small world is made of. Bytes only, and lists that are sorted: two states that are alike have
/// the same bytes.
namespace godwit::sim::small {

using Byte = std::uint8_t;
inline constexpr Byte none = 0xff;

enum class Run : Byte { absent, running, stopped, pinned };

struct Copy {
  Run run = Run::absent;
  Byte fresh = 0;      ///< nothing has run since it was what it is
  Byte owed = 0;       ///< pages of it are still with the copy that it was made from
  Byte departing = 0;  ///< a move of this daemon has it in hand
  Byte noted = 0;      ///< what follows is written down: a new daemon makes the same claim
  Byte role = none;    ///< 0 source, 1 destination
  Byte move = none;
  Byte serving = 0;   ///< only keeps the pages that are owed
  Byte claim = none;  ///< among those that were ever made
  Byte waits = 0;     ///< for the time to ask the store again
  Byte word = 0;      ///< an operator's, in the pod's directory: 1 said here, until the record knows; 2 said there
};

struct Move {
  Byte from = none, to = none, epoch = 0;  ///< of the record before it
};

enum class Say : Byte { state, rebuilt, go, abort, drained };
struct Message {
  Byte say = none, move = none, fresh = 0;
  auto operator<=>(const Message&) const = default;
};

enum class What : Byte { swap, look };
struct Request {
  Byte node = none, slot = 0, orphan = 0;  ///< orphan: nobody waits for its answer
  Byte what = 0, owner = 0, epoch = 0, to = 0;
  auto operator<=>(const Request&) const = default;
};
struct Answer {
  Byte node = none, slot = 0, late = 0;
  Byte what = 0, yes = 0, owner = 0, epoch = 0;
  auto operator<=>(const Answer&) const = default;
};

/// A bag of at most N.
template <typename T, std::size_t N>
struct Bag {
  std::array<T, N> items{};  ///< sorted; those beyond `size` are as made
  Byte size = 0;
};

inline constexpr std::size_t most_nodes = 3, most_moves = 3;

struct State {
  std::array<std::array<Copy, 2>, most_nodes> copies{};  ///< the second one: for a bug
  std::array<Byte, most_nodes> up{};
  std::array<Move, most_moves> moves{};
  Byte made = 0;              ///< moves
  Byte owner = 0, epoch = 1;  ///< the record
  Byte excused = 0;           ///< the machine that owned the pod, or the one that owed it pages, was lost
  Byte lost = 0;  ///< bits: machines that were lost with a complete copy, which may be committed to after that
  Byte crashes = 0, losses = 0, silences = 0, doubles = 0;
  Bag<Message, 12> messages;
  Bag<Request, 8> requests;
  Bag<Answer, 4> answers;
};
static_assert(alignof(State) == 1, "no padding: states are compared by their bytes");

}  // namespace godwit::sim::small
