#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace godwit::sim {

/// What is done wrongly on purpose, so that a test can show that it would be found. All of it is done around the code
/// in control/, which is what it is: a bug here stands for one there, or in a shell that carries out its decisions.
enum class Bug : std::uint8_t {
  none,
  source_runs_on,        ///< after a commit without an answer the source goes on
  destination_runs_on,   ///< a destination that hears nothing more goes on without a look at the record
  no_fence,              ///< who gives up doesn't take the epoch away from a commit that is on its way
  any_epoch,             ///< a record that names this node is believed, whichever epoch it is of
  owner_compared_alone,  ///< the store's swap compares owners and no epochs
  late_answer,           ///< a store's answer that comes too late is taken for that to the next question
  old_go,                ///< a go is believed, whichever move it is of
  abort_in_doubt,        ///< a source tells its peer to give up while it doesn't know whether it has committed
  cancel_committing,     ///< a cancellation is honoured when the commit has been asked for
  adopted_unasked,       ///< a new daemon lets go on what it finds frozen
  noted_late,            ///< the source writes down what it has begun only when the store has answered
  second_copy,           ///< a node takes a pod in of which it holds a frozen copy
  never_doubts,          ///< a destination waits for its source's word for ever
  early_end,             ///< the source's copy goes at the commit, although pages of it are owed
  moves_on_owed,         ///< a pod moves on before its last page has come
  features_unsaid,       ///< what a pod needs of its next processor isn't told
  undecided,             ///< a destination doesn't ask its starter about the exact needs
  word_unfenced,         ///< an operator's word is forgotten when the record is what it says, and a commit on its way
  promise_forever,       ///< promises have no end
  promise_leaks,         ///< an arrival that fails keeps what it was promised
};

struct Planted {
  Bug bug;
  std::string_view name, what;
  bool simulated, explored;  ///< whether it is seen in the simulator, and in the explorer's small world
};
std::span<const Planted> planted();
std::optional<Bug> bug_named(std::string_view);

}  // namespace godwit::sim
