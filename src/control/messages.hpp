#pragma once

#include "control/needs.hpp"

/// What starters say to each other. A move takes the seven messages of Charlotte's protocol (Artsy, Finkel: Designing a
/// process migration facility, 1989; Stallings: Operating Systems, Distributed process management):
///
///   1  source's starter      -> destination's starter   Ask: will you take it?
///   2  destination's starter -> source's starter        Answer: yes, and where; or no, and why
///   3  source's starter      -> its kernel              Negotiation's action `move_out`
///   4  source's kernel       -> destination's kernel    the migration's Hello: the exact needs
///   5  destination's kernel  -> its starter             Admission::decide
///   6  its starter           -> its kernel              what that returns
///   7  destination's kernel  -> source's kernel         Welcome, or Refused with every reason
///
/// "Kernel" is Charlotte's word; here it is `migrate/`, which does what it is told to. 1 and 2 decide about rough needs
/// while nothing has begun; 5 and 6 about the exact ones.
namespace godwit::control {

inline constexpr std::uint32_t protocol = 3;
inline constexpr std::size_t text_limit = 512;  ///< characters of a text in a message
inline constexpr std::size_t answer_text_limit = 16 * text_limit;
inline constexpr std::size_t list_limit = 64;  ///< labels, addresses
inline constexpr std::size_t elsewhere_limit = 1024;

struct Ask {
  std::uint32_t version = protocol;
  std::string move;         ///< id of the move; a yes reserves under it
  std::string pod, pod_id;  ///< its name, and Spec::id
  std::uint64_t epoch = 0;  ///< of its record
  std::string from;         ///< the node that would send it
  Needs needs;
  bool probe = false;                  ///< only wants to know: nothing is reserved
  std::vector<std::string> elsewhere;  ///< nodes that the asked one may name instead of itself
  MSGPACK_DEFINE_MAP(version, move, pod, pod_id, epoch, from, needs, probe, elsewhere)
};

struct Answer {
  std::string move;
  bool yes = false;
  std::string node;    ///< yes: where to
  std::string reason;  ///< no: `to_string(Reason)`
  std::string text;    ///< no longer than `answer_text_limit`
  Labels labels;       ///< of the node that is named
  MSGPACK_DEFINE_MAP(move, yes, node, reason, text, labels)
};

/// The source needs no room any more.
struct Withdrawal {
  std::string move;
  MSGPACK_DEFINE_MAP(move)
};

/// What one starter sends to another: an ask, or, with an empty one, a withdrawal.
struct Request {
  Ask ask;
  Withdrawal withdrawal;
  MSGPACK_DEFINE_MAP(ask, withdrawal)
};

/// The longest request or answer, in bytes.
inline constexpr std::size_t message_limit = 256 * KiB;

/// From the bytes that another starter has sent; `invalid` when they are malformed, over the limits or not plausible.
Result<Request> read_request(BytesView);
Result<Answer> read_answer(BytesView);

/// Adds why (another) one says no to the text of an answer, as far as it has room.
void add_text(std::string& text, const std::string& more);

/// False for what no starter of ours would say: too long, or without what is needed.
bool plausible(const Ask&);
bool plausible(const Answer&);

}  // namespace godwit::control
