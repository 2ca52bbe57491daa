#pragma once

#include <optional>
#include <string>
#include <variant>

#include "control/messages.hpp"
#include "control/ownership.hpp"

/// What travels in the simulated cluster. Of a migration only what decides: see migrate/wire.hpp for the whole.
namespace godwit::sim {

// Between starters.
struct AskRoom {
  std::uint64_t search = 0;
  control::Ask ask;
};
struct AnswerRoom {
  std::uint64_t search = 0;
  control::Answer answer;
};

// On a migration's connection.
struct Hello {
  std::string move;
  int pod = 0;
  control::Needs needs;
  control::Owner before;
  bool postcopy = false;
};
struct Welcome {};
struct Refused {
  std::string text;
};
struct Pages {};  ///< while the pod runs
struct State {    ///< of the frozen pod: the copy is complete, or what it is owed is with `origin`
  std::uint64_t stamp = 0, origin = 0;
  bool holed = false;  ///< pages are missing that are on a third node
};
struct Rebuilt {};
struct Go {
  int pod = 0;
};
struct Abort {};
struct Running {};
struct Pushed {};  ///< all that was owed
struct Drained {};
struct Resume {  ///< the destination wants what it is still owed
  std::string move;
};
struct Unknown {};  ///< there is nothing of that move here
struct Closed {};

// Without a connection.
struct Reset {
  std::uint64_t connection = 0;
};
struct Needed {  ///< is the copy of that move still?
  std::string move;
  std::uint64_t copy = 0;
};
struct NotNeeded {
  std::uint64_t copy = 0;
};

// To the store and back.
struct StoreAsk {
  enum class What { get, swap, create, remove };
  std::uint64_t ticket = 0;
  What what = What::get;
  control::Owner expected;  ///< its pod_id says which record
  std::string to;
};
struct StoreAnswer {
  std::uint64_t ticket = 0;
  StoreAsk::What what = StoreAsk::What::get;
  bool yes = false;
  std::optional<control::Owner> record;
};

using Body =
    std::variant<AskRoom, AnswerRoom, control::Withdrawal, Hello, Welcome, Refused, Pages, State, Rebuilt, Go, Abort,
                 Running, Pushed, Drained, Resume, Unknown, Closed, Reset, Needed, NotNeeded, StoreAsk, StoreAnswer>;

struct Message {
  int from = 0, to = 0;
  std::uint64_t connection = 0;  ///< 0: none; then it may be lost, doubled, late and out of order
  std::uint64_t number = 0;      ///< on its connection
  Body body;
};

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

}  // namespace godwit::sim
