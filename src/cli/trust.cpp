#include <unistd.h>

#include <filesystem>

#include "cli/commands.hpp"
#include "node/authority.hpp"
#include "node/credentials.hpp"
#include "node/files.hpp"
#include "node/membership.hpp"

namespace godwit::cli {
namespace {

namespace pki = node::pki;

constexpr const char* config_path = "/etc/godwit/godwitd.toml";
constexpr std::chrono::seconds join_time{20};

/// This machine's config, as far as it says who the node is and where its certificates are.
Result<node::Config> own_config() {
  auto config =
      ::access(config_path, F_OK) == 0 ? TRY(node::load_config(config_path)) : TRY(node::parse_config("", "defaults"));
  if (!config.tls) config.tls = node::default_tls(config.state_dir);
  return config;
}

std::string authority_directory(const node::Config& config) {
  return std::filesystem::path(config.tls->authority).parent_path();
}

Result<pki::Labels> parse_labels(const std::vector<std::string>& texts) {
  pki::Labels labels;
  for (const auto& text : texts) labels.insert(TRY(pki::parse_label(text)));
  return labels;
}

int finish(const Common& common, const Result<void>& done) {
  return done ? exit_code::ok : complain(common, done.error());
}

/// What the daemon says to a change of the files; nothing when there is no daemon.
Result<Json> tell_daemon(const Common& common, const Json& what) {
  return Client(common).request("POST", "/v1/trust", what);
}

Result<void> make_cluster(const Common& common, const TrustOptions& options) {
  const auto config = TRY(own_config());
  const auto labels = TRY(parse_labels(options.labels));
  const auto life = options.lifetime.empty() ? config.tls->lifetime : TRY(node::parse_duration(options.lifetime));
  const std::string directory = authority_directory(config);
  TRY(pki::make_authority(directory));
  auto authority = TRY(pki::Authority::open(directory));
  const auto key = TRY(pki::make_key());
  const auto request = TRY(pki::make_request(key.get()));
  const auto certificate = TRY(authority.sign(request.get(), {config.node, labels}, life));
  const std::string list = TRY(node::read_whole(pki::expelled_beside(config.tls->authority), pki::list_limit));
  TRY(pki::install(*config.tls, pki::to_pem(authority.certificate()), list, pki::to_pem(key.get()),
                   pki::to_pem(certificate.get())));
  if (common.json) {
    print_json(Json{{"node", config.node}, {"directory", directory}});
    return {};
  }
  fmt::print("node {} is the first of a new cluster; its authority is in {}\n", config.node, directory);
  fmt::print("keep a copy of authority.key where nobody else can read it: who has it can make nodes\n");
  fmt::print("next: [tls] in {}; then for each other node, here: godwit pki token --node NAME\n", config_path);
  return {};
}

Result<void> make_token(const Common& common, const TrustOptions& options) {
  const auto config = TRY(own_config());
  const auto labels = TRY(parse_labels(options.labels));
  const auto life = TRY(node::parse_duration(options.valid));
  auto authority = TRY(pki::Authority::open(authority_directory(config)));
  const std::string address =
      options.address.empty() ? fmt::format("{}:{}", config.node, config.port) : options.address;
  const auto token = TRY(authority.make_token({options.node, labels}, address, life));
  if (common.json)
    print_json(Json{{"token", token.text()}, {"node", options.node}, {"address", address}});
  else
    fmt::print("{}\n", token.text());
  if (!common.json && ::isatty(STDOUT_FILENO) == 1)
    fmt::print(stderr, "on {}, within {}: godwit join --token TOKEN\n", options.node, options.valid);
  return {};
}

Result<void> join_cluster(const Common& common, const TrustOptions& options) {
  const auto config = TRY(own_config());
  if (::access(config.tls->certificate.c_str(), F_OK) == 0 && !options.again)
    return std::unexpected(Error{ErrorKind::refused,
                                 fmt::format("this node has a certificate: {}", config.tls->certificate), 0,
                                 "--again replaces it"});
  if (pki::Authority::in(authority_directory(config)))
    return fail(ErrorKind::refused, "this node has a cluster's authority itself: it can't join another one");
  const auto key = TRY(pki::make_key());
  const auto request = TRY(pki::make_request(key.get()));
  const auto joined = TRY(node::join(options.token, pki::to_pem(request.get()), node::in(join_time)));
  TRY(pki::install(*config.tls, joined.authority, joined.expelled, pki::to_pem(key.get()), joined.certificate));
  if (common.json)
    print_json(Json{{"node", joined.node}, {"by", joined.by}});
  else
    fmt::print("this is node {} now, let in by {}\n", joined.node, joined.by);
  if (joined.node != config.node)
    return std::unexpected(Error{ErrorKind::invalid, fmt::format("the config calls this node '{}'", config.node), 0,
                                 fmt::format("node = \"{}\" in {}", joined.node, config_path)});
  // What it has read is complete, and what belongs together.
  TRY(pki::Credentials::load(*config.tls, config.node));
  if (!common.json && config.peer(joined.by) == nullptr)
    fmt::print(
        "next: [tls] in {}, and\n  [[peers]]\n  name = \"{}\"\n  address = \"{}\"\nand this node among the peers of "
        "the others\n",
        config_path, joined.by, joined.by_address);
  return {};
}

Result<void> expel_node(const Common& common, const TrustOptions& options) {
  const auto config = TRY(own_config());
  if (options.node == config.node)
    return fail(ErrorKind::refused, "node {} has the cluster's authority: it can't expel itself", config.node);
  auto authority = TRY(pki::Authority::open(authority_directory(config)));
  TRY(authority.expel(options.node));
  const auto told = tell_daemon(common, Json{{"reload", true}});
  if (!told && told.error().kind != ErrorKind::unreachable) return std::unexpected(told.error());
  if (common.json) {
    print_json(Json{{"expelled", options.node}, {"peers", told ? (*told)["peers"] : Json::array()}});
    return {};
  }
  fmt::print("node {} is expelled\n", options.node);
  if (!told) fmt::print("the daemon here doesn't run: it tells the others when it does\n");
  if (told)
    for (const Json& peer : (*told)["peers"])
      if (peer["name"] != options.node && !peer["told"].get<bool>())
        fmt::print("{} is not told yet: {}\n", peer["name"].get<std::string>(), peer["error"].get<std::string>());
  return {};
}

Result<void> show(const Common& common) {
  const auto config = TRY(own_config());
  const auto credentials = TRY(pki::Credentials::load(*config.tls, config.node));
  X509* certificate = credentials->certificate();
  const auto life = pki::life_of(certificate);
  const auto good = credentials->usable();
  std::vector<std::string> labels;
  for (const auto& label : pki::labels_of(certificate)) labels.push_back(pki::to_text(label));
  if (common.json) {
    print_json(Json{{"node", config.node},
                    {"labels", labels},
                    {"serial", pki::serial_of(certificate)},
                    {"begin", pki::to_text(life.begin)},
                    {"end", pki::to_text(life.end)},
                    {"good", good.has_value()},
                    {"error", good ? "" : good.error().message()},
                    {"authority", pki::fingerprint(credentials->authority())},
                    {"authority_here", pki::Authority::in(authority_directory(config))},
                    {"list", pki::number_of(credentials->expelled())},
                    {"expelled", pki::serials_of(credentials->expelled()).size()}});
    return {};
  }
  fmt::print("node       {}\nlabels     {}\ngood until {}\nauthority  {}{}\nexpelled   {} certificates (list {})\n",
             config.node, fmt::join(labels, ", "), pki::to_text(life.end), pki::fingerprint(credentials->authority()),
             pki::Authority::in(authority_directory(config)) ? " (here)" : "",
             pki::serials_of(credentials->expelled()).size(), pki::number_of(credentials->expelled()));
  return good;
}

Result<void> renew(const Common& common) {
  TRY(tell_daemon(common, Json{{"renew", true}}));
  return common.node.empty() ? show(common) : Result<void>{};
}

}  // namespace

int pki_init(const Common& common, const TrustOptions& options) {
  return finish(common, make_cluster(common, options));
}
int pki_token(const Common& common, const TrustOptions& options) {
  return finish(common, make_token(common, options));
}
int pki_expel(const Common& common, const TrustOptions& options) {
  return finish(common, expel_node(common, options));
}
int pki_renew(const Common& common) {
  return finish(common, renew(common));
}
int pki_show(const Common& common) {
  return finish(common, show(common));
}
int join(const Common& common, const TrustOptions& options) {
  return finish(common, join_cluster(common, options));
}

}  // namespace godwit::cli
