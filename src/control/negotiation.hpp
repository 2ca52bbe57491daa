#pragma once

#include <deque>
#include <optional>
#include <variant>

#include "control/messages.hpp"

namespace godwit::control {

/// One move's search for a node that takes it: the asking half of a starter. Used by the source, which lets the first
/// node of a group answer for all of them, and by that node, which asks the others one by one.
class Negotiation {
 public:
  struct Plan {
    Ask ask;                              ///< without `elsewhere`
    std::vector<std::string> candidates;  ///< in the order in which they are asked; the user has named exactly these
    std::vector<Refusal> refused;  ///< by others that the user has named, earlier in this move: told when all refuse
    bool delegate = true;          ///< the first one that can be reached answers for the rest
    std::vector<std::string>
        hints;              ///< asked, without obligation, whether they would, when all candidates have refused
    Time patience{10'000};  ///< how long `busy` is asked again
    std::optional<Time> deadline;
  };

  // What happens.
  struct Begin {};
  struct Answered {
    std::string by;
    Answer answer;
  };
  struct NoAnswer {  ///< it can't be reached, or didn't answer in time
    std::string by, text;
  };
  struct Tick {};  ///< the time of a `Wait` has come
  struct Cancel {};
  using Event = std::variant<Begin, Answered, NoAnswer, Tick, Cancel>;

  // What is to be done.
  struct Send {
    std::string to;
    Ask ask;
  };
  struct Wait {
    Time until;
  };
  struct MoveOut {  ///< message 3; last
    std::string to;
    Labels labels;  ///< of that node
  };
  struct GiveUp {  ///< last
    Reason reason;
    std::vector<std::string> texts;
    std::string alternative;  ///< a node that would say yes; may be empty
  };
  struct Withdraw {
    std::string to;
  };
  using Action = std::variant<Send, Wait, MoveOut, GiveUp, Withdraw>;

  explicit Negotiation(Plan plan) : plan_(std::move(plan)) {}

  /// What arrives late, twice or from somebody who wasn't asked changes nothing, but a yes that isn't used is
  /// withdrawn.
  std::vector<Action> step(const Event&, Time now);

  [[nodiscard]] bool over() const { return over_; }
  [[nodiscard]] const std::string& move() const { return plan_.ask.move; }

 private:
  using Actions = std::vector<Action>;
  void note(Reason, std::string text);
  Actions ask_next(Time now);
  Actions refused(const Refusal&, Time now);
  Actions settle(const Answer&, Time now);
  Actions ask_hint(Time now);
  Actions give_up(Reason, std::string alternative = {});
  [[nodiscard]] Reason first_reason() const;

  Plan plan_;
  std::optional<Time> begun_;
  std::size_t next_ = 0;  ///< among the candidates
  std::size_t next_hint_ = 0;
  std::optional<std::string> asked_;  ///< whose answer is waited for
  std::string taken_;                 ///< the node that it moves to
  bool busy_ = false;                 ///< one of this round's refusals was for the moment only
  bool waiting_ = false;
  bool over_ = false;
  Time pause_{50};
  std::vector<Refusal> refusals_;  ///< of this round
};

/// The answer of a node that wouldn't take the pod itself, when another one of its group does.
Answer accept_for(Answer own, const Negotiation::MoveOut&);

}  // namespace godwit::control
