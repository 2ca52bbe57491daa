#include "node/starter.hpp"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <set>
#include <thread>

#include "base/fault.hpp"
#include "base/interruptible.hpp"
#include "base/log.hpp"
#include "kernel/netlink.hpp"
#include "kernel/procfs.hpp"
#include "migrate/machine.hpp"
#include "node/registry.hpp"

namespace godwit::node {
namespace {

using control::Negotiation;
using control::Reason;

constexpr std::chrono::seconds answer_time{5};
/// An asked node asks its store, and waits for it longer than for anything else.
constexpr std::chrono::seconds ask_time{12};
/// A node that answers for its group asks the others one by one.
constexpr std::chrono::seconds group_time{30};
constexpr std::chrono::seconds withdrawal_time{1};
constexpr std::size_t most_hints = 8;

control::Time now() {
  return std::chrono::duration_cast<control::Time>(std::chrono::steady_clock::now().time_since_epoch());
}

std::uint64_t open_descriptors(HostPid process) {
  const auto numbers = kernel::list_descriptors(process);
  return numbers ? numbers->size() : 0;
}

std::uint64_t descriptors_available() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const std::uint64_t used = open_descriptors(HostPid{::getpid()});
  return limit.rlim_cur - std::min<std::uint64_t>(limit.rlim_cur, used);
}

/// Whether `address` lies in the network `subnet`, both CIDR.
bool within(const std::string& address, const std::string& subnet) {
  const auto inner = kernel::parse_prefix(address);
  const auto outer = kernel::parse_prefix(subnet);
  if (!inner || !outer || inner->family != outer->family) return false;
  for (int bit = 0; bit < outer->length; ++bit) {
    const auto byte = static_cast<std::size_t>(bit / 8);
    if (((inner->bytes[byte] ^ outer->bytes[byte]) & (0x80 >> (bit % 8))) != 0) return false;
  }
  return true;
}

ErrorKind kind_of(Reason reason) {
  switch (reason) {
    case Reason::busy:
      return ErrorKind::busy;
    case Reason::unreachable:
      return ErrorKind::unreachable;
    case Reason::cancelled:
      return ErrorKind::cancelled;
    case Reason::late:
      return ErrorKind::timeout;
    default:
      return ErrorKind::refused;
  }
}

}  // namespace

std::uint64_t memory_available() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::uint64_t kilobytes = 0;
  std::string unit;
  while (file >> name >> kilobytes) {
    if (name == "MemAvailable:") return kilobytes * KiB;
    std::getline(file, unit);
  }
  return 0;
}

control::Needs needs_of(pod::Pod& pod) {
  const pod::Spec& spec = pod.spec();
  control::Needs needs{.processors = spec.cpu_limit,
                       .labels = spec.labels,
                       .addresses = spec.network.addresses,
                       .home = spec.home,
                       .user = spec.user.uid,
                       .capabilities = spec.capabilities};
  const auto processes = pod.workload().processes();
  if (!processes) return needs;
  for (const HostPid process : *processes) {
    if (const auto status = kernel::read_status(process)) needs.memory += status->resident_bytes + status->swap_bytes;
    needs.descriptors += open_descriptors(process);
  }
  return needs;
}

Starter::Starter(const Config& config, const Links& links, const Rules& rules, const Pods& pods, store::Store& store)
    : config_(config),
      links_(links),
      rules_(rules),
      pods_(pods),
      store_(store),
      draining_file_(config.state_dir + "/draining"),
      machine_(migrate::read_machine()),
      admission_(config.node, {.labels = config.labels,
                               .draining = ::access(draining_file_.c_str(), F_OK) == 0,
                               .guests = config.guests,
                               .pods = config.most_pods}) {}

Result<std::vector<std::string>> Starter::candidates(const std::string& destination) const {
  std::vector<std::string> nodes;
  if (destination == any_node) {
    for (const Peer& peer : config_.peers) nodes.push_back(peer.name);
  } else if (const auto group = config_.groups.find(destination); group != config_.groups.end()) {
    nodes = group->second;
  } else if (destination == config_.node || config_.peer(destination) != nullptr) {
    nodes = {destination};
  } else {
    std::string names = std::string(any_node);
    for (const Peer& peer : config_.peers) names += ", " + peer.name;
    for (const auto& [name, members] : config_.groups) names += ", " + name;
    return std::unexpected(Error{ErrorKind::not_found, fmt::format("no node named '{}'", destination), 0,
                                 config_.peers.empty() ? "this node has no peers" : "known here: " + names});
  }
  std::erase(nodes, config_.node);
  if (nodes.empty())
    return fail(ErrorKind::refused, "there is no other node in '{}': the pod is on {} already", destination,
                config_.node);
  Result<void> refused;
  std::erase_if(nodes, [&](const std::string& node) {
    const auto may = rules_.may_send(node);
    if (!may) refused = may;
    return !may;
  });
  if (nodes.empty()) return std::unexpected(refused.error());
  return nodes;
}

control::Room Starter::room(const Sender& peer, const std::string& pod_id, const control::Needs& needs) const {
  control::Room room{.memory = memory_available(),
                     .processors = static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN)),
                     .descriptors = descriptors_available(),
                     .objections = rules_.against(peer, needs)};
  if (machine_)
    room.machine = *machine_;
  else
    room.objections.push_back({Reason::machine, machine_.error().message()});
  for (const auto& local : pods_.list()) {
    const auto view = local->view();
    if (!view.here || view.state == PodState::exited) continue;
    room.pods.insert(local->spec.id);
    if (local->spec.id == pod_id) continue;
    room.processors -= local->spec.cpu_limit;
    for (const auto& address : local->spec.network.addresses)
      if (std::ranges::count(needs.addresses, address) > 0)
        room.objections.push_back(
            {Reason::address, fmt::format("pod {} on {} has its address {}", local->spec.name, config_.node, address)});
  }
  const auto& network = config_.network;
  for (const auto& address : needs.addresses)
    if (network.bridge.empty() || (!within(address, network.subnet4) && !within(address, network.subnet6)))
      room.objections.push_back(
          {Reason::address,
           fmt::format("its address {} doesn't belong to the network of {} ({})", address, config_.node,
                       network.bridge.empty() ? "pods have none there" : network.subnet4)});
  return room;
}

Result<control::Answer> Starter::ask(const std::string& node, const control::Ask& ask,
                                     std::optional<Deadline> end) const {
  const auto limited = [&](std::chrono::milliseconds limit) {
    const auto left = end.value_or(never()) - std::chrono::steady_clock::now();
    return std::max(std::min<Deadline::duration>(limit, left), Deadline::duration(0));
  };
  const Deadline deadline = std::chrono::steady_clock::now() + limited(ask.elsewhere.empty() ? ask_time : group_time);
  Stream connection =
      TRY(links_.connect(node, service::starter, std::chrono::ceil<std::chrono::milliseconds>(limited(answer_time))));
  TRY(write_frame(connection, image::pack(control::Request{ask, {}}), deadline));
  auto answer = TRY(control::read_answer(TRY(read_frame(connection, control::message_limit, deadline))));
  if (answer.move != ask.move) return fail(ErrorKind::invalid, "{} answers what it wasn't asked", node);
  // Of itself it can say what it likes: its certificate knows. Whom it names shows its own when the pod is sent.
  if (const auto labels = Links::labels(connection); labels && answer.node == node) answer.labels = *labels;
  return answer;
}

void Starter::withdraw(const std::string& node, const std::string& move) {
  // Not worth waiting for long: a promise ends by itself.
  auto connection = links_.connect(node, service::starter, withdrawal_time);
  if (connection) (void)write_frame(*connection, image::pack(control::Request{{}, {move}}), in(withdrawal_time));
}

std::variant<Negotiation::MoveOut, Negotiation::GiveUp> Starter::carry_out(Negotiation& negotiation,
                                                                           const std::atomic<bool>& cancelled,
                                                                           std::optional<Deadline> deadline) {
  std::deque<Negotiation::Event> events{Negotiation::Begin{}};
  for (;;) {
    Negotiation::Event event = Negotiation::Cancel{};
    if (!events.empty() && !cancelled) event = std::move(events.front());
    if (!events.empty()) events.pop_front();
    for (const auto& action : negotiation.step(event, now())) {
      if (const auto* send = std::get_if<Negotiation::Send>(&action)) {
        {
          const std::lock_guard lock(mutex_);
          if (!send->ask.probe && send->ask.from == config_.node)
            admission_.asking(send->ask.move, send->ask.pod_id, send->to);
        }
        Result<control::Answer> answer;
        {
          const Interruptible while_asking(cancelled);
          answer = ask(send->to, send->ask, deadline);
        }
        fault::reach("starter.asked");
        {
          const std::lock_guard lock(mutex_);
          admission_.asked(send->ask.move);
        }
        if (answer)
          events.emplace_back(Negotiation::Answered{send->to, std::move(*answer)});
        else
          events.emplace_back(Negotiation::NoAnswer{send->to, answer.error().message()});
      } else if (const auto* wait = std::get_if<Negotiation::Wait>(&action)) {
        while (now() < wait->until && !cancelled) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        events.emplace_back(Negotiation::Tick{});
      } else if (const auto* withdrawal = std::get_if<Negotiation::Withdraw>(&action)) {
        withdraw(withdrawal->to, negotiation.move());
      } else if (const auto* out = std::get_if<Negotiation::MoveOut>(&action)) {
        return *out;
      } else if (const auto* up = std::get_if<Negotiation::GiveUp>(&action)) {
        return *up;
      }
    }
  }
}

std::vector<std::string> Starter::hints(const Wish& wish) const {
  std::vector<std::string> nodes;
  for (const Peer& peer : config_.peers)
    if (std::ranges::count(wish.candidates, peer.name) == 0 && rules_.may_send(peer.name)) nodes.push_back(peer.name);
  if (nodes.size() < 2) return nodes;
  if (const auto registered = registered_nodes(store_)) sort_by_load(nodes, *registered);
  nodes.resize(std::min(nodes.size(), most_hints));
  return nodes;
}

Result<std::string> Starter::agree(const Wish& wish) {
  Negotiation::Plan plan{.ask = {.move = wish.move,
                                 .pod = wish.pod,
                                 .pod_id = wish.pod_id,
                                 .epoch = wish.epoch,
                                 .from = config_.node,
                                 .needs = wish.needs,
                                 .probe = wish.probe},
                         .candidates = wish.candidates,
                         .hints = hints(wish)};
  if (!machine_) return std::unexpected(machine_.error());
  plan.ask.needs.machine = *machine_;
  for (const auto& [node, refusal] : wish.refused) {
    std::erase(plan.candidates, node);
    plan.refused.push_back(refusal);
  }
  if (wish.deadline) plan.deadline = std::chrono::duration_cast<control::Time>(wish.deadline->time_since_epoch());
  Negotiation negotiation(std::move(plan));
  const auto outcome = carry_out(negotiation, wish.cancelled, wish.deadline);
  if (const auto* out = std::get_if<Negotiation::MoveOut>(&outcome)) return out->to;
  const auto& up = std::get<Negotiation::GiveUp>(outcome);
  Error error{kind_of(up.reason), fmt::format("{} is not taken: {}", wish.pod, fmt::join(up.texts, "; ")), 0, {}};
  if (!up.alternative.empty())
    error.hint = fmt::format("{0} would take it: godwit migrate {1} {0}", up.alternative, wish.pod);
  else if (up.reason == Reason::busy)
    error.hint = "try again in a moment";
  return std::unexpected(std::move(error));
}

control::Answer Starter::answer_alone(const control::Ask& ask, const Sender& asking) {
  const auto no = [&](Reason reason, const std::string& text) {
    return control::Answer{
        .move = ask.move, .reason = std::string(to_string(reason)), .text = text.substr(0, control::text_limit)};
  };
  // Who takes a pod has to be able to ask whose it is, in the end, and that of the store that its source asks.
  if (control::plausible(ask)) {
    const auto record = store_.get(ask.pod);
    if (!record)
      return no(Reason::unreachable, fmt::format("{} can't ask its store: {}", config_.node, record.error().message()));
    if (!*record || (*record)->id != ask.pod_id || (*record)->owner != ask.from)
      return no(Reason::protocol, fmt::format("in the store of {} this pod is not {}'s", config_.node, ask.from));
  }
  // Asked for a member of its group: what the member's certificate says is seen when it sends.
  const control::Room room = this->room(asking.name == ask.from ? asking : Sender{ask.from, {}}, ask.pod_id, ask.needs);
  const std::lock_guard lock(mutex_);
  return admission_.consider(ask, room, now());
}

control::Answer Starter::answer_to(const control::Ask& ask, const Sender& asking) {
  control::Answer answer = answer_alone(ask, asking);
  if (answer.yes || ask.elsewhere.empty() || !control::plausible(ask)) return answer;
  // For the group: the others one by one, in the name of the node that asks.
  Negotiation::Plan plan{.ask = ask, .candidates = ask.elsewhere, .delegate = false, .patience = control::Time(0)};
  plan.ask.elsewhere.clear();
  std::erase_if(plan.candidates,
                [&](const std::string& node) { return config_.peer(node) == nullptr || node == ask.from; });
  // Each once, in the order in which they were named: nobody has a node asked a thousand times.
  std::set<std::string> named;
  std::erase_if(plan.candidates, [&](const std::string& node) { return !named.insert(node).second; });
  if (plan.candidates.empty()) return answer;
  Negotiation negotiation(std::move(plan));
  const std::atomic<bool> never_cancelled = false;
  const auto outcome = carry_out(negotiation, never_cancelled, {});
  if (const auto* out = std::get_if<Negotiation::MoveOut>(&outcome)) {
    answer = control::accept_for(std::move(answer), *out);
  } else {
    for (const auto& text : std::get<Negotiation::GiveUp>(outcome).texts) control::add_text(answer.text, text);
  }
  return answer;
}

void Starter::serve(Stream& asking, const Sender& sender) {
  const std::string& peer = sender.name;
  const auto frame = read_frame(asking, control::message_limit, in(answer_time));
  if (!frame) return;
  const auto request = control::read_request(*frame);
  if (!request) return log::warn("starter of {}: {}", peer, request.error().message());
  if (request->ask.move.empty()) {
    const std::lock_guard lock(mutex_);
    return admission_.withdraw({peer, request->withdrawal.move});
  }
  // Its own pod, or one that it asks about for a member of its group.
  if (request->ask.from != peer && (config_.peer(request->ask.from) == nullptr || !request->ask.elsewhere.empty()))
    return log::warn("starter of {}: asks in the name of {}", peer, request->ask.from);
  const control::Answer answer = answer_to(request->ask, sender);
  log::info("pod {} of {}: {}", request->ask.pod, request->ask.from,
            answer.yes ? "may come to " + answer.node : "not taken: " + answer.text);
  fault::reach("starter.promised");
  (void)write_frame(asking, image::pack(answer), in(answer_time));
}

std::vector<std::string> Starter::decide(const std::string& move, const Sender& peer, const pod::Spec& spec,
                                         const control::Needs& needs) {
  const control::Room room = this->room(peer, spec.id, needs);
  const std::lock_guard lock(mutex_);
  std::vector<std::string> texts;
  for (auto& refusal : admission_.decide({peer.name, move}, spec.id, needs, room, now()))
    texts.push_back(std::move(refusal.text));
  return texts;
}

std::size_t Starter::promises() {
  const std::lock_guard lock(mutex_);
  return admission_.promises(now()).size();
}

void Starter::end(const std::string& move, const Sender& peer) {
  const std::lock_guard lock(mutex_);
  admission_.end({peer.name, move});
}

void Starter::used(const std::string& move, const Sender& peer, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  admission_.used({peer.name, move}, bytes);
}

Result<void> Starter::set_draining(bool draining) {
  const std::lock_guard lock(mutex_);
  if (draining) {
    const Fd file(::open(draining_file_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!file) return fail_errno("write {}", draining_file_);
  } else if (::unlink(draining_file_.c_str()) != 0 && errno != ENOENT) {
    return fail_errno("remove {}", draining_file_);
  }
  auto policy = admission_.policy();
  policy.draining = draining;
  admission_.set(policy);
  return {};
}

bool Starter::draining() const {
  const std::lock_guard lock(mutex_);
  return admission_.policy().draining;
}

std::vector<std::string> Starter::objections(const std::vector<std::string>& labels) const {
  std::vector<std::string> no;
  if (draining()) no.push_back(fmt::format("{} is being emptied", config_.node));
  if (const auto missing = control::missing_labels(config_.labels, labels); !missing.empty())
    no.push_back(fmt::format("{} hasn't the label {}", config_.node, fmt::join(missing, ", ")));
  return no;
}

}  // namespace godwit::node
