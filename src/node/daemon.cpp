#include "node/daemon.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <filesystem>
#include <thread>

#include "base/log.hpp"
#include "node/api.hpp"
#include "node/caller.hpp"
#include "node/cgroup_directory.hpp"
#include "node/files.hpp"
#include "node/membership.hpp"
#include "node/server.hpp"
#include "node/store_link.hpp"

namespace godwit::node {
namespace {

/// Connections at a time. Commands that follow something hold one each.
constexpr std::size_t strangers = 64;
constexpr std::size_t most_connections = 1024;

bool valid_migration(std::string_view id) {
  return !id.empty() && id.size() <= 64 && id.find_first_not_of("0123456789abcdef-") == std::string_view::npos;
}

/// Two daemons over one state_dir would both take over its pods.
Result<Fd> lock_state(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail_errno("open {}", path);
  // One that was just killed holds it until the kernel has taken it apart.
  const Deadline end = in(std::chrono::seconds(3));
  int locked = ::flock(fd.get(), LOCK_EX | LOCK_NB);
  while (locked != 0 && errno == EWOULDBLOCK && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    locked = ::flock(fd.get(), LOCK_EX | LOCK_NB);
  }
  if (locked != 0)
    return std::unexpected(Error{ErrorKind::busy, fmt::format("another godwitd uses {}", state_dir), 0,
                                 "stop it, or give this one another state_dir"});
  return fd;
}

Result<std::unique_ptr<store::Store>> open_store(const Config& config, const Links& links) {
  if (config.store.starts_with("peer:")) return open_store_link(links, config.store.substr(5));
  if (config.store.starts_with("etcd")) return store::open_etcd(config.store);
  const std::string path = config.store == "sqlite" ? config.state_dir + "/pods.db" : config.store.substr(7);
  return store::open_sqlite(path);
}

}  // namespace

struct Daemon::Parts {
  Parts(Config given, Rules given_rules, std::unique_ptr<Trust> whom, pod::Site pods_site, Fd state_lock)
      : config(std::move(given)),
        trust(std::move(whom)),
        site(std::move(pods_site)),
        lock(std::move(state_lock)),
        links(config, trust.get()),
        rules(std::move(given_rules)) {}

  Config config;
  std::unique_ptr<Trust> trust;  ///< null: plain
  pod::Site site;
  Fd lock;
  Links links;
  Rules rules;
  std::unique_ptr<Membership> membership;  ///< null: plain
  std::unique_ptr<store::Store> store;
  Doubts doubts;
  std::unique_ptr<Remainders> remainders;
  std::unique_ptr<Journal> journal;
  std::unique_ptr<Pods> pods;
  std::unique_ptr<Starter> starter;
  std::unique_ptr<Moves> moves;
  std::unique_ptr<Registry> registry;
  std::unique_ptr<Api> api;
  std::unique_ptr<Server> peers;
  std::unique_ptr<Server> commands;

  [[nodiscard]] bool serves_store() const { return !config.store.starts_with("peer:"); }

  [[nodiscard]] bool offers(const std::string& name, bool member) const {
    if (membership && membership->offers(name, member)) return true;
    if (!member) return false;
    for (const auto of_a_move : {service::migration, service::pages, service::owed})
      if (name.starts_with(of_a_move)) return valid_migration(std::string_view(name).substr(of_a_move.size()));
    return name == service::api || name == service::starter || (name == service::store && serves_store());
  }

  void serve_peer(Tasks::Connection& connection) {
    prepare_tcp(connection.stream.fd());
    const auto caller = links.accept(connection.stream, [&](const std::string& name, bool member) {
      if (member) connection.trust();
      return offers(name, member);
    });
    if (!caller) {
      if (caller.error().kind == ErrorKind::refused) log::warn("peers: {}", caller.error().message());
      return;
    }
    if (!connection.charge(caller->peer)) return log::warn("peers: {} has too many connections", caller->peer);
    const Sender sender{caller->peer, Links::labels(connection.stream).value_or(control::Labels{})};
    if (caller->service == service::api) return api->serve_peer(connection.stream, sender);
    if (caller->service == service::starter) return starter->serve(connection.stream, sender);
    if (caller->service == service::store)
      return serve_store(connection.stream, sender.name, *store,
                         [&](const store::Record& record) { return rules.may_speak(sender, record.user); });
    for (const auto of_trust : {service::join, service::renew, service::expelled})
      if (caller->service == of_trust) return membership->serve(connection.stream, *caller);
    const auto move_of = [&](std::string_view prefix) { return caller->service.substr(prefix.size()); };
    if (caller->service.starts_with(service::pages))
      return remainders->serve(connection.stream, caller->peer, move_of(service::pages));
    if (caller->service.starts_with(service::owed))
      return remainders->serve_question(connection.stream, caller->peer, move_of(service::owed));
    moves->incoming(std::move(connection.stream), sender, move_of(service::migration));
  }
};

namespace {

/// What the certificate says of this node's labels is what they are: the config may repeat it, and can't add to it.
Result<std::unique_ptr<Trust>> open_trust(Config& config) {
  if (!config.tls) return nullptr;
  auto trust = TRY(Trust::open(config));
  const auto labels = pki::labels_of(trust->credentials()->certificate());
  for (const auto& label : config.labels) {
    const auto found = labels.find(label.first);
    if (found != labels.end() && found->second == label.second) continue;
    return std::unexpected(Error{
        ErrorKind::refused, fmt::format("[labels] has '{}', and this node's certificate doesn't", pki::to_text(label)),
        0,
        fmt::format("where the authority is: godwit pki token --node {} --label {}; then godwit join --again here",
                    config.node, pki::to_text(label))});
  }
  config.labels = labels;
  // Its pods are here all the same.
  if (const auto good = trust->credentials()->usable(); !good) log::error("{}", good.error().message());
  return trust;
}

}  // namespace

Daemon::Daemon(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Result<std::unique_ptr<Daemon>> Daemon::start(Config config, pod::Zygote& zygote) {
  TRY(make_directory(config.state_dir, 0711));
  TRY(make_directory(config.run_dir, 0711));
  Rules rules = TRY(Rules::from(config));
  Fd lock = TRY(lock_state(config.state_dir));
  pod::Site site{.node = config.node,
                 .state_dir = config.state_dir,
                 .run_dir = config.run_dir,
                 .bridge = config.network.bridge,
                 .cgroup = TRY(prepare_cgroup(config.cgroup, config.node)),
                 .zygote = &zygote};
  auto trust = TRY(open_trust(config));
  auto parts =
      std::make_unique<Parts>(std::move(config), std::move(rules), std::move(trust), std::move(site), std::move(lock));
  Parts& p = *parts;
  if (p.trust) p.membership = std::make_unique<Membership>(p.links, *p.trust);
  p.store = TRY(open_store(p.config, p.links));
  p.remainders = std::make_unique<Remainders>(p.links, *p.store, p.config.state_dir);
  p.journal = std::make_unique<Journal>(*p.store);
  p.pods = std::make_unique<Pods>(p.links, p.site, *p.store, p.doubts, *p.remainders, *p.journal);
  p.starter = std::make_unique<Starter>(p.config, p.links, p.rules, *p.pods, *p.store);
  p.moves =
      std::make_unique<Moves>(p.links, *p.starter, *p.pods, *p.store, p.doubts, *p.remainders, *p.journal, p.site);
  p.registry = std::make_unique<Registry>(*p.store, p.config.node,
                                          [&p] { return describe_node(p.config, *p.pods, *p.starter); });
  p.api = std::make_unique<Api>(p.links, *p.pods, *p.moves, *p.starter, *p.store, p.doubts, *p.remainders, *p.registry,
                                p.rules, p.membership.get());

  // The port first: other nodes may have to ask our store before they can tell whose their pods are.
  if (p.trust || p.config.plain) {
    Fd port = TRY(listen_tcp(p.config.listen, p.config.port));
    p.peers = std::make_unique<Server>(std::move(port), strangers, most_connections,
                                       [&p](Tasks::Connection& connection) { p.serve_peer(connection); });
  }
  TRY(p.pods->adopt());
  Fd socket = TRY(listen_unix(p.config.socket));
  p.commands = std::make_unique<Server>(std::move(socket), most_connections, most_connections,
                                        [&p](Tasks::Connection& connection) {
                                          connection.trust();
                                          const auto caller = caller_of(connection.stream.fd());
                                          if (!caller) return;
                                          if (caller->uid != 0 && !connection.charge(std::to_string(caller->uid)))
                                            return log::warn("user {} has too many connections", caller->uid);
                                          p.api->serve(connection.stream, *caller);
                                        });
  return std::unique_ptr<Daemon>(new Daemon(std::move(parts)));
}

Daemon::~Daemon() {
  Parts& p = *parts_;
  ::unlink(p.config.socket.path.c_str());
  p.pods->leave_off();
  p.moves->stop();
  p.commands.reset();
  p.peers.reset();
  p.moves.reset();
  p.registry.reset();
  p.starter.reset();
  p.pods.reset();
  p.journal.reset();
  p.remainders.reset();
  // What pods are in stays; the rest would be left for nobody.
  for (const std::string& directory : {p.site.cgroup + "/pods", p.site.cgroup}) ::rmdir(directory.c_str());
}

}  // namespace godwit::node
