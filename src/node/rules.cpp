#include "node/rules.hpp"

#include <grp.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <sstream>

#include "kernel/capabilities.hpp"

namespace godwit::node {
namespace {

std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || stop != text.data() + text.size()) return {};
  return value;
}

Result<std::uint32_t> group_named(const std::string& name) {
  if (const auto gid = number(name)) return *gid;
  struct group entry {};
  struct group* found = nullptr;
  std::array<char, 64 * 1024> buffer;
  if (::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr)
    return fail(ErrorKind::invalid, "no group named '{}' on this machine", name);
  return found->gr_gid;
}

/// "a,b": {"a", "b"}
std::vector<std::string> words_in(const std::string& list) {
  std::vector<std::string> words;
  std::istringstream rest(list);
  for (std::string word; std::getline(rest, word, ',');) words.push_back(word);
  return words;
}

/// What can't be understood here allows nothing.
bool certified_for(const Sender& sender, std::uint32_t uid) {
  const auto label = sender.labels.find("users");
  if (label == sender.labels.end()) return true;
  const auto users = Users::from(words_in(label->second));
  return users && users->covers(uid);
}

kernel::Capabilities certified_capabilities(const Sender& sender) {
  const auto label = sender.labels.find("capabilities");
  if (label == sender.labels.end()) return ~0ULL;
  return kernel::parse_capabilities(words_in(label->second)).value_or(0);
}

}  // namespace

Result<Users> Users::from(const std::vector<std::string>& words) {
  Users users;
  for (const std::string& word : words) {
    const auto dash = word.find('-');
    const auto first = number(word.substr(0, dash));
    const auto last = dash == std::string::npos ? first : number(word.substr(dash + 1));
    if (word == "*") {
      users.users_.push_back({0, ~0U});
    } else if (word.starts_with('@')) {
      const auto gid = TRY(group_named(word.substr(1)));
      users.groups_.push_back({gid, gid});
    } else if (first && last && *first <= *last) {
      users.users_.push_back({*first, *last});
    } else {
      const auto named = pod::user_named(word);
      if (!named) return fail(ErrorKind::invalid, "{}", named.error().what);
      users.users_.push_back({named->uid, named->uid});
    }
  }
  return users;
}

bool Users::within(const std::vector<Range>& ranges, std::uint32_t id) {
  return std::ranges::any_of(ranges, [&](const Range& range) { return range.first <= id && id <= range.last; });
}

bool Users::contains(const pod::User& user) const {
  return within(users_, user.uid) || within(groups_, user.gid) ||
         std::ranges::any_of(user.groups, [&](std::uint32_t gid) { return within(groups_, gid); });
}

bool Users::covers(std::uint32_t uid) const {
  if (within(users_, uid)) return true;
  if (uid == 0 || groups_.empty()) return false;
  // Not by `gid`: without an account that is only the uid once more.
  const auto known = pod::user_named(std::to_string(uid));
  return known && std::ranges::any_of(known->groups, [&](std::uint32_t gid) { return within(groups_, gid); });
}

Result<Rules> Rules::from(const Config& config) {
  Rules rules;
  rules.node_ = config.node;
  const auto named = [](const char* key, const auto& words, const auto& read) -> Result<void> {
    if (auto done = read(words); !done) return std::unexpected(std::move(done.error()).within(key));
    return {};
  };
  const auto into = [](Users& users) {
    return [&users](const std::vector<std::string>& words) -> Result<void> {
      users = TRY(Users::from(words));
      return {};
    };
  };
  TRY(named("users.run", config.users.run, into(rules.run_)));
  TRY(named("users.move", config.users.move, into(rules.move_)));
  for (const Peer& peer : config.peers) {
    Trust& trust = rules.peers_[peer.name];
    trust.send = peer.send;
    trust.receive = peer.receive;
    TRY(named("peers.users", peer.users, into(trust.users)));
    TRY(named("peers.capabilities", peer.capabilities, [&](const auto& words) -> Result<void> {
      trust.capabilities = TRY(kernel::parse_capabilities(words));
      return {};
    }));
  }
  return rules;
}

const Rules::Trust* Rules::trust(const std::string& peer) const {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : &found->second;
}

Result<void> Rules::may_run(const pod::User& caller, const pod::User& wanted, std::uint64_t capabilities) const {
  if (caller.is_root()) return {};
  const auto refuse = [](std::string what, std::string hint) {
    return std::unexpected(Error{ErrorKind::refused, std::move(what), 0, std::move(hint)});
  };
  if (!run_.contains(caller))
    return refuse(fmt::format("{} may not run pods on {}", pod::name_of(caller.uid), node_),
                  "its owner can allow it: run = [\"" + pod::name_of(caller.uid) + "\"] in [users] of godwitd.toml");
  if (wanted != caller) return refuse("only root may run a pod as somebody else", "");
  if (capabilities != 0) return refuse(fmt::format("only root may give a pod {}", kernel::to_text(capabilities)), "");
  return {};
}

Result<void> Rules::may_move(const pod::User& caller) const {
  if (caller.is_root() || move_.contains(caller)) return {};
  return std::unexpected(
      Error{ErrorKind::refused, fmt::format("{} may not move pods away from {}", pod::name_of(caller.uid), node_), 0,
            "its owner can allow it: move = [\"" + pod::name_of(caller.uid) + "\"] in [users] of godwitd.toml"});
}

Result<void> Rules::may_send(const std::string& peer) const {
  const Trust* known = trust(peer);
  if (known == nullptr || known->send) return {};
  return fail(ErrorKind::refused, "the owner of {} lets no pod go to {}", node_, peer);
}

Result<void> Rules::may_speak(const Sender& peer, std::uint32_t uid) const {
  if (!certified_for(peer, uid))
    return fail(ErrorKind::refused, "the certificate of {} lets it ask for nothing in the name of user {}", peer.name,
                pod::name_of(uid));
  const Trust* known = trust(peer.name);
  if (known != nullptr && known->users.covers(uid)) return {};
  return fail(ErrorKind::refused, "the owner of {} lets {} ask for nothing in the name of user {}", node_, peer.name,
              pod::name_of(uid));
}

Result<void> Rules::may_speak(const Sender& peer, const pod::User& user) const {
  TRY(may_speak(peer, user.uid));
  constexpr std::uint32_t root = 0;
  // Who may speak for root could have given them anyway.
  if (may_speak(peer, root) || pod::has_own_groups(user)) return {};
  return fail(ErrorKind::refused, "user {} hasn't the groups on {} in which {} asks in its name",
              pod::name_of(user.uid), node_, peer.name);
}

std::vector<control::Refusal> Rules::against(const Sender& sender, const control::Needs& needs) const {
  using control::Reason;
  const std::string& peer = sender.name;
  const Trust* known = trust(peer);
  if (known == nullptr) return {{Reason::owner, fmt::format("{} is no peer of {}", peer, node_)}};
  std::vector<control::Refusal> no;
  if (!known->receive) no.push_back({Reason::owner, fmt::format("the owner of {} wants no pods of {}", node_, peer)});
  if (!known->users.covers(needs.user))
    no.push_back({Reason::owner,
                  fmt::format("the owner of {} lets no pod of {} run as {}", node_, peer, pod::name_of(needs.user))});
  if (!certified_for(sender, needs.user))
    no.push_back({Reason::owner, fmt::format("the certificate of {} lets none of its pods run as {}", peer,
                                             pod::name_of(needs.user))});
  if (const auto beyond = needs.capabilities & ~certified_capabilities(sender); beyond != 0)
    no.push_back({Reason::owner, fmt::format("the certificate of {} lets none of its pods have {}", peer,
                                             kernel::to_text(beyond & kernel::all_capabilities()))});
  if (const auto beyond = needs.capabilities & ~known->capabilities; beyond != 0)
    no.push_back({Reason::owner, fmt::format("the owner of {} lets no pod of {} have {}", node_, peer,
                                             kernel::to_text(beyond & kernel::all_capabilities()))});
  if (const auto lacking = needs.capabilities & ~kernel::bounding_capabilities(); lacking != 0)
    no.push_back({Reason::owner, fmt::format("it may have {}, which {} has for no pod",
                                             kernel::to_text(lacking & kernel::all_capabilities()), node_)});
  return no;
}

}  // namespace godwit::node
