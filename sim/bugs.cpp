#include "sim/bugs.hpp"

#include <algorithm>
#include <array>

namespace godwit::sim {
namespace {

constexpr std::array all{
    Planted{Bug::source_runs_on, "source-runs-on", "after a commit without an answer the source goes on", true, true},
    Planted{Bug::destination_runs_on, "destination-runs-on", "a destination in doubt goes on without a look", true,
            true},
    Planted{Bug::no_fence, "no-fence", "who gives up leaves a late commit its epoch", true, true},
    Planted{Bug::any_epoch, "any-epoch", "a record that names this node is believed at any epoch", true, true},
    Planted{Bug::owner_compared_alone, "owner-compared-alone", "the store's swap compares no epochs", true, true},
    Planted{Bug::late_answer, "late-answer", "a store's late answer is taken for the next one's", true, true},
    Planted{Bug::old_go, "old-go", "a go is believed, whichever move it is of", false, true},
    Planted{Bug::abort_in_doubt, "abort-in-doubt", "a source in doubt tells its peer to give up", true, true},
    Planted{Bug::cancel_committing, "cancel-committing", "a cancellation is honoured during the commit", true, true},
    Planted{Bug::adopted_unasked, "adopted-unasked", "a new daemon lets go on what it finds frozen", true, true},
    Planted{Bug::noted_late, "noted-late", "the source takes its notes only after the commit", true, true},
    Planted{Bug::second_copy, "second-copy", "a node takes a pod of which it holds a frozen copy", true, true},
    Planted{Bug::never_doubts, "never-doubts", "a destination waits for its source's word for ever", true, true},
    Planted{Bug::early_end, "early-end", "the source's copy goes while pages of it are owed", true, true},
    Planted{Bug::moves_on_owed, "moves-on-owed", "a pod moves on before its last page has come", true, false},
    Planted{Bug::features_unsaid, "features-unsaid", "what a pod needs of its next processor isn't told", true, false},
    Planted{Bug::undecided, "undecided", "the exact needs aren't decided about", true, false},
    Planted{Bug::word_unfenced, "word-unfenced", "an operator's word leaves a late commit its epoch", false, true},
    Planted{Bug::promise_forever, "promise-forever", "promises have no end", true, false},
    Planted{Bug::promise_leaks, "promise-leaks", "a failed arrival keeps what it was promised", true, false},
};

}  // namespace

std::span<const Planted> planted() {
  return all;
}

std::optional<Bug> bug_named(std::string_view name) {
  const auto found = std::ranges::find(all, name, &Planted::name);
  return found == all.end() ? std::nullopt : std::optional(found->bug);
}

}  // namespace godwit::sim
