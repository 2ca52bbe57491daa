#include "node/config.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <set>
#include <sstream>

#include "base/fd.hpp"
#include "node/rules.hpp"
#include "store/etcd_gateway.hpp"

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

namespace godwit::node {
namespace {

constexpr std::size_t file_limit = 1024 * 1024;
constexpr std::size_t peers_limit = 1024;
constexpr std::size_t key_minimum = 16;
constexpr std::size_t words_limit = 1024;

/// One table of the file. Every key that is asked for is known; `finish` refuses the others by line.
class Table {
 public:
  Table(const toml::table& table, std::string name, const std::string& origin)
      : table_(table), name_(std::move(name)), origin_(origin) {}

  Result<void> text(std::string_view key, std::string& value) {
    const toml::node* node = find(key);
    if (node == nullptr) return {};
    const auto found = node->value_exact<std::string>();
    if (!found) return wrong(*node, key, "must be a string");
    value = *found;
    return {};
  }

  Result<void> number(std::string_view key, std::int64_t low, std::int64_t high, std::int64_t& value) {
    const toml::node* node = find(key);
    if (node == nullptr) return {};
    const auto found = node->value_exact<std::int64_t>();
    if (!found || *found < low || *found > high)
      return wrong(*node, key, fmt::format("must be a number from {} to {}", low, high));
    value = *found;
    return {};
  }

  Result<void> flag(std::string_view key, bool& value) {
    const toml::node* node = find(key);
    if (node == nullptr) return {};
    const auto found = node->value_exact<bool>();
    if (!found) return wrong(*node, key, "must be true or false");
    value = *found;
    return {};
  }

  Result<void> texts(std::string_view key, std::vector<std::string>& values) {
    const toml::node* node = find(key);
    if (node == nullptr) return {};
    const toml::array* array = node->as_array();
    if (array == nullptr || array->size() > words_limit) return wrong(*node, key, "must be a list of strings");
    values.clear();
    for (const toml::node& item : *array) {
      const auto text = item.value_exact<std::string>();
      if (!text) return wrong(item, key, "must be a list of strings");
      values.push_back(*text);
    }
    return {};
  }

  const toml::node* find(std::string_view key) {
    known_.insert(std::string(key));
    return table_.get(key);
  }

  std::unexpected<Error> wrong(const toml::node& node, std::string_view key, std::string_view why) const {
    return fail(ErrorKind::invalid, "{}:{}: {}{}{} {}", origin_, node.source().begin.line, name_,
                name_.empty() ? "" : ".", key, why);
  }

  Result<void> finish() const {
    for (const auto& [key, node] : table_) {
      if (known_.contains(std::string(key.str()))) continue;
      std::string all;
      for (const auto& name : known_) all += (all.empty() ? "" : ", ") + name;
      return fail(ErrorKind::invalid, "{}:{}: unknown key '{}'{}; known here: {}", origin_, key.source().begin.line,
                  std::string(key.str()), name_.empty() ? "" : " in [" + name_ + "]", all);
    }
    return {};
  }

 private:
  const toml::table& table_;
  std::string name_;
  const std::string& origin_;
  std::set<std::string> known_;
};

Result<void> sub_table(Table& parent, const toml::node* node, std::string_view key, const std::string& origin,
                       const std::function<Result<void>(Table&)>& read) {
  if (node == nullptr) return {};
  const toml::table* table = node->as_table();
  if (table == nullptr) return parent.wrong(*node, key, "must be a table");
  Table inner(*table, std::string(key), origin);
  TRY(read(inner));
  return inner.finish();
}

bool valid_cidr(const std::string& text, int family) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) return false;
  unsigned length = 0;
  const char* begin = text.data() + slash + 1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, length);
  if (error != std::errc{} || stop != end || length < 1 || length > (family == AF_INET ? 30u : 126u)) return false;
  std::uint8_t bytes[16];
  return inet_pton(family, text.substr(0, slash).c_str(), bytes) == 1;
}

bool valid_ip(const std::string& text, int family) {
  std::uint8_t bytes[16];
  return inet_pton(family, text.c_str(), bytes) == 1;
}

Result<void> read_network(Table& table, Config::Network& network) {
  struct Field {
    const char* key;
    std::string& value;
    int family;
    bool cidr;
  };
  TRY(table.text("bridge", network.bridge));
  if (network.bridge.size() > 15 || network.bridge.find('/') != std::string::npos)
    return table.wrong(*table.find("bridge"), "bridge", "must be the name of a network device (15 characters at most)");
  const Field fields[] = {{"subnet4", network.subnet4, AF_INET, true},
                          {"subnet6", network.subnet6, AF_INET6, true},
                          {"pods4", network.pods4, AF_INET, true},
                          {"gateway4", network.gateway4, AF_INET, false},
                          {"gateway6", network.gateway6, AF_INET6, false}};
  for (const Field& field : fields) {
    TRY(table.text(field.key, field.value));
    if (field.value.empty()) continue;
    if (field.cidr ? !valid_cidr(field.value, field.family) : !valid_ip(field.value, field.family))
      return table.wrong(*table.find(field.key), field.key,
                         fmt::format("must be an IPv{} {}", field.family == AF_INET ? 4 : 6,
                                     field.cidr ? "network such as 10.66.0.0/16 or fd66::/64" : "address"));
  }
  return {};
}

Result<void> read_socket(Table& table, Config::Socket& socket) {
  TRY(table.text("path", socket.path));
  // sockaddr_un has room for 107 characters.
  if (socket.path.size() > 107 || (!socket.path.empty() && socket.path[0] != '/'))
    return table.wrong(*table.find("path"), "path", "must be an absolute path of 107 characters at most");
  TRY(table.text("group", socket.group));
  std::string mode;
  TRY(table.text("mode", mode));
  if (mode.empty()) return {};
  const auto [stop, error] = std::from_chars(mode.data(), mode.data() + mode.size(), socket.mode, 8);
  if (error != std::errc{} || stop != mode.data() + mode.size() || socket.mode > 0777)
    return table.wrong(*table.find("mode"), "mode", "must be an octal string such as \"0660\"");
  return {};
}

Result<void> read_peers(Table& root, const std::string& origin, std::vector<Peer>& peers) {
  const toml::node* node = root.find("peers");
  if (node == nullptr) return {};
  const toml::array* array = node->as_array();
  if (array == nullptr || array->size() > peers_limit)
    return root.wrong(*node, "peers", "must be a list of {name, address}");
  for (const toml::node& item : *array) {
    const toml::table* entry = item.as_table();
    if (entry == nullptr) return root.wrong(item, "peers", "must be a list of {name, address}");
    Table table(*entry, "peers", origin);
    Peer peer;
    TRY(table.text("name", peer.name));
    TRY(table.text("address", peer.address));
    TRY(table.flag("send", peer.send));
    TRY(table.flag("receive", peer.receive));
    TRY(table.texts("users", peer.users));
    TRY(table.texts("capabilities", peer.capabilities));
    TRY(table.finish());
    if (!valid_name(peer.name)) return root.wrong(item, "peers.name", "is missing or not a name of a node");
    if (!split_address(peer.address)) return root.wrong(item, "peers.address", "is missing or not host:port");
    if (std::ranges::any_of(peers, [&](const Peer& other) { return other.name == peer.name; }))
      return root.wrong(item, "peers.name", fmt::format("'{}' stands there twice", peer.name));
    peers.push_back(std::move(peer));
  }
  return {};
}

Result<void> read_labels(Table& table, const toml::table& values, std::map<std::string, std::string>& labels) {
  for (const auto& [key, node] : values) TRY(table.text(key.str(), labels[std::string(key.str())]));
  return {};
}

Result<void> read_groups(Table& table, const toml::table& values,
                         std::map<std::string, std::vector<std::string>>& groups) {
  for (const auto& [key, node] : values) {
    const std::string name(key.str());
    const toml::array* members = table.find(name)->as_array();
    if (members == nullptr || members->empty() || members->size() > peers_limit)
      return table.wrong(node, name, "must be a list of names of nodes");
    for (const toml::node& member : *members) {
      const auto text = member.value<std::string>();
      if (!text || !valid_name(*text)) return table.wrong(member, name, "must be a list of names of nodes");
      groups[name].push_back(*text);
    }
  }
  return {};
}

Result<std::string> read_key_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("key_file {}", path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail_errno("key_file {}", path);
  if (!S_ISREG(status.st_mode) || (status.st_mode & 077) != 0)
    return std::unexpected(Error{ErrorKind::refused, fmt::format("key_file {} can be read by others", path), 0,
                                 fmt::format("chmod 600 {}", path)});
  std::string key(4096, '\0');
  const ssize_t size = ::read(fd.get(), key.data(), key.size());
  if (size < 0) return fail_errno("key_file {}", path);
  key.resize(static_cast<std::size_t>(size));
  while (!key.empty() && (key.back() == '\n' || key.back() == ' ' || key.back() == '\r')) key.pop_back();
  return key;
}

Result<void> read_key(Table& root, Config& config) {
  TRY(root.text("key", config.key));
  std::string key_file;
  TRY(root.text("key_file", key_file));
  if (!key_file.empty()) {
    if (!config.key.empty()) return root.wrong(*root.find("key_file"), "key_file", "and key exclude each other");
    config.key = TRY(read_key_file(key_file));
  }
  const char* which = key_file.empty() ? "key" : "key_file";
  if (!config.key.empty() && config.key.size() < key_minimum)
    return root.wrong(*root.find(which), which, fmt::format("must hold {} characters or more", key_minimum));
  return {};
}

Result<void> read_tls(Table& table, Config::Tls& tls) {
  for (auto& [key, value] : std::initializer_list<std::pair<const char*, std::string&>>{
           {"authority", tls.authority}, {"certificate", tls.certificate}, {"key", tls.key}}) {
    TRY(table.text(key, value));
    if (!value.empty() && value[0] != '/') return table.wrong(*table.find(key), key, "must be an absolute path");
  }
  std::string lifetime;
  TRY(table.text("lifetime", lifetime));
  if (lifetime.empty()) return {};
  const auto parsed = parse_duration(lifetime);
  if (!parsed) return table.wrong(*table.find("lifetime"), "lifetime", "must be such as \"30d\", \"12h\" or \"90s\"");
  tls.lifetime = *parsed;
  return {};
}

/// Either trust or its absence is asked for by name.
Result<void> check_trust(const Config& config, const std::string& origin) {
  const auto wrong = [&](const char* what, const char* hint) {
    return std::unexpected(Error{ErrorKind::invalid, fmt::format("{}: {}", origin, what), 0, hint});
  };
  if (config.plain && config.tls)
    return wrong("plain = true and [tls] exclude each other", "leave plain out: with [tls] nobody reads along");
  if (config.tls && !config.key.empty())
    return wrong("key and [tls] exclude each other", "leave the key out: nodes know each other by their certificates");
  if (config.plain && config.key.empty())
    return wrong("plain = true without key or key_file",
                 "an open port would let anyone be root here: give all nodes the same key_file");
  if (!config.plain && !config.key.empty())
    return wrong(
        "a key is for plain = true",
        "write plain = true if everybody on this network may read what pods have in memory; else [tls] instead of "
        "the key, with godwit pki init and godwit join");
  if (!config.peers.empty() && !config.plain && !config.tls)
    return wrong("peers, but neither [tls] nor plain = true",
                 "write [tls], and give this node its certificate: godwit pki init on the first node, godwit pki token "
                 "there and godwit join on the others");
  return {};
}

std::string own_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  std::string text(name);
  text.resize(std::min(text.find('.'), text.size()));
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

Result<void> check_whole(const Config& config, const std::string& origin) {
  if (auto rules = Rules::from(config); !rules) return std::unexpected(std::move(rules.error()).within(origin));
  if (!valid_name(config.node))
    return fail(ErrorKind::invalid, "{}: node '{}' is not a name ([a-z0-9.-], 63 at most)", origin, config.node);
  TRY(check_trust(config, origin));
  if (config.peer(config.node) != nullptr)
    return fail(ErrorKind::invalid, "{}: '{}' is this node itself and can't be among its peers", origin, config.node);
  for (const auto& [group, members] : config.groups) {
    if (!valid_name(group) || group == any_node || group == config.node || config.peer(group) != nullptr)
      return fail(ErrorKind::invalid, "{}: group '{}' must be a name ([a-z0-9.-]) that no node has, and not '{}'",
                  origin, group, any_node);
    for (const auto& member : members)
      if (member != config.node && config.peer(member) == nullptr)
        return fail(ErrorKind::invalid, "{}: group '{}' has '{}', which is no node here", origin, group, member);
  }
  for (const std::string& path : {config.state_dir, config.run_dir})
    if (path.empty() || path[0] != '/')
      return fail(ErrorKind::invalid, "{}: '{}' must be an absolute path", origin, path);
  if (config.store.starts_with("peer:")) {
    if (config.peer(config.store.substr(5)) == nullptr)
      return fail(ErrorKind::invalid, "{}: store '{}' names no peer of this node", origin, config.store);
  } else if (config.store.starts_with("etcd")) {
    if (auto place = store::EtcdPlace::parse(config.store); !place)
      return std::unexpected(std::move(place.error()).within(origin));
  } else if (config.store != "sqlite" && !config.store.starts_with("sqlite:/")) {
    return fail(ErrorKind::invalid, "{}: store '{}' must be sqlite, sqlite:/PATH, peer:NAME or etcd://…", origin,
                config.store);
  }
  static const std::set<std::string> levels{"debug", "info", "warn", "error"};
  if (!levels.contains(config.log_level))
    return fail(ErrorKind::invalid, "{}: log_level '{}' must be debug, info, warn or error", origin, config.log_level);
  return {};
}

/// "…" with TOML's escapes.
std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << toml::table{{"v", text}};
  const std::string line = out.str();
  return line.substr(line.find('=') + 2);
}

std::string quoted(const std::vector<std::string>& texts) {
  std::string list;
  for (const auto& text : texts) list += (list.empty() ? "" : ", ") + quoted(text);
  return "[" + list + "]";
}

}  // namespace

const Peer* Config::peer(const std::string& name) const {
  const auto found = std::ranges::find(peers, name, &Peer::name);
  return found == peers.end() ? nullptr : &*found;
}

Config::Tls default_tls(const std::string& state_dir) {
  const std::string directory = state_dir + "/tls/";
  return {
      .authority = directory + "authority.pem", .certificate = directory + "node.pem", .key = directory + "node.key"};
}

Result<std::chrono::seconds> parse_duration(const std::string& text) {
  constexpr std::int64_t most = 100LL * 365 * 24 * 3600;
  static const std::map<std::string_view, std::int64_t> units{{"s", 1}, {"m", 60}, {"h", 3600}, {"d", 24 * 3600}};
  std::int64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto unit = units.find(std::string_view(stop, static_cast<std::size_t>(text.data() + text.size() - stop)));
  if (error != std::errc{} || unit == units.end() || number < 1 || number > most / unit->second)
    return fail(ErrorKind::invalid, "'{}' is no time such as 30d, 12h, 15m or 90s", text);
  return std::chrono::seconds(number * unit->second);
}

Result<std::pair<std::string, std::uint16_t>> split_address(const std::string& address) {
  std::string host = address;
  std::string port;
  if (address.starts_with('[')) {
    const std::size_t close = address.find(']');
    if (close == std::string::npos) return fail(ErrorKind::invalid, "'{}' is not host:port", address);
    host = address.substr(1, close - 1);
    const std::string rest = address.substr(close + 1);
    if (!rest.empty() && (rest[0] != ':' || rest.size() == 1))
      return fail(ErrorKind::invalid, "'{}' is not host:port", address);
    if (!rest.empty()) port = rest.substr(1);
  } else if (const std::size_t colon = address.find(':'); colon != std::string::npos && colon == address.rfind(':')) {
    host = address.substr(0, colon);
    port = address.substr(colon + 1);
    if (port.empty()) return fail(ErrorKind::invalid, "'{}' is not host:port", address);
  }
  std::uint16_t number = default_port;
  if (!port.empty()) {
    const auto [stop, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc{} || stop != port.data() + port.size() || number == 0)
      return fail(ErrorKind::invalid, "'{}' is not host:port", address);
  }
  if (host.empty() || host.size() > 253) return fail(ErrorKind::invalid, "'{}' is not host:port", address);
  return std::pair(host, number);
}

Result<Config> parse_config(const std::string& text, const std::string& origin) {
  const toml::parse_result parsed = toml::parse(text, origin);
  if (!parsed)
    return fail(ErrorKind::invalid, "{}:{}: {}", origin, parsed.error().source().begin.line,
                std::string(parsed.error().description()));
  Config config;
  Table root(parsed.table(), "", origin);
  TRY(root.text("node", config.node));
  TRY(root.text("listen", config.listen));
  if (!valid_ip(config.listen, AF_INET) && !valid_ip(config.listen, AF_INET6))
    return root.wrong(*root.find("listen"), "listen", "must be an IP address of this machine, 0.0.0.0 or ::");
  std::int64_t port = config.port;
  TRY(root.number("port", 1, 65535, port));
  config.port = static_cast<std::uint16_t>(port);
  TRY(read_peers(root, origin, config.peers));
  TRY(read_key(root, config));
  TRY(root.flag("plain", config.plain));
  for (auto& [key, value] :
       std::initializer_list<std::pair<const char*, std::string&>>{{"state_dir", config.state_dir},
                                                                   {"run_dir", config.run_dir},
                                                                   {"store", config.store},
                                                                   {"cgroup", config.cgroup},
                                                                   {"log_level", config.log_level}})
    TRY(root.text(key, value));
  if (const toml::node* tls = root.find("tls"); tls != nullptr) {
    config.tls = default_tls(config.state_dir);
    TRY(sub_table(root, tls, "tls", origin, [&](Table& table) { return read_tls(table, *config.tls); }));
  }
  TRY(sub_table(root, root.find("socket"), "socket", origin,
                [&](Table& table) { return read_socket(table, config.socket); }));
  TRY(sub_table(root, root.find("network"), "network", origin,
                [&](Table& table) { return read_network(table, config.network); }));
  TRY(sub_table(root, root.find("users"), "users", origin, [&](Table& table) -> Result<void> {
    TRY(table.texts("run", config.users.run));
    return table.texts("move", config.users.move);
  }));
  const toml::node* labels = root.find("labels");
  TRY(sub_table(root, labels, "labels", origin,
                [&](Table& table) { return read_labels(table, *labels->as_table(), config.labels); }));
  const toml::node* groups = root.find("groups");
  TRY(sub_table(root, groups, "groups", origin,
                [&](Table& table) { return read_groups(table, *groups->as_table(), config.groups); }));
  TRY(root.flag("guests", config.guests));
  auto most_pods = static_cast<std::int64_t>(config.most_pods);
  TRY(root.number("most_pods", 0, 1'000'000, most_pods));
  config.most_pods = static_cast<std::uint64_t>(most_pods);
  auto page_patience = static_cast<std::int64_t>(config.page_patience);
  TRY(root.number("page_patience", 1, 30LL * 24 * 3600, page_patience));
  config.page_patience = static_cast<std::uint64_t>(page_patience);
  TRY(root.finish());
  if (config.node.empty()) config.node = own_name();
  if (config.socket.path.empty()) config.socket.path = config.run_dir + "/godwit.sock";
  TRY(check_whole(config, origin));
  return config;
}

Result<Config> load_config(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("config {}", path);
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t size = ::read(fd.get(), buffer, sizeof buffer);
    if (size < 0) return fail_errno("config {}", path);
    if (size == 0) break;
    text.append(buffer, static_cast<std::size_t>(size));
    if (text.size() > file_limit) return fail(ErrorKind::invalid, "config {} is larger than 1 MiB", path);
  }
  return parse_config(text, path);
}

std::string write_config(const Config& config) {
  std::string out;
  const auto line = [&](const char* key, const std::string& value) {
    if (!value.empty()) out += fmt::format("{} = {}\n", key, quoted(value));
  };
  line("node", config.node);
  line("listen", config.listen);
  out += fmt::format("port = {}\n", config.port);
  if (config.plain) out += "plain = true\n";
  line("key", config.key);
  line("state_dir", config.state_dir);
  line("run_dir", config.run_dir);
  line("store", config.store);
  line("cgroup", config.cgroup);
  line("log_level", config.log_level);
  if (!config.guests) out += "guests = false\n";
  if (config.most_pods != 0) out += fmt::format("most_pods = {}\n", config.most_pods);
  out += fmt::format("page_patience = {}\n", config.page_patience);
  for (const Peer& peer : config.peers) {
    out += fmt::format("[[peers]]\nname = {}\naddress = {}\n", quoted(peer.name), quoted(peer.address));
    if (!peer.send) out += "send = false\n";
    if (!peer.receive) out += "receive = false\n";
    if (peer.users != Peer().users) out += fmt::format("users = {}\n", quoted(peer.users));
    if (peer.capabilities != Peer().capabilities) out += fmt::format("capabilities = {}\n", quoted(peer.capabilities));
  }
  out += fmt::format("[users]\nrun = {}\nmove = {}\n", quoted(config.users.run), quoted(config.users.move));
  if (config.tls) {
    out += "[tls]\n";
    line("authority", config.tls->authority);
    line("certificate", config.tls->certificate);
    line("key", config.tls->key);
    line("lifetime", fmt::format("{}s", config.tls->lifetime.count()));
  }
  out += "[socket]\n";
  line("path", config.socket.path);
  line("mode", fmt::format("{:04o}", config.socket.mode));
  line("group", config.socket.group);
  out += "[network]\n";
  line("bridge", config.network.bridge);
  line("subnet4", config.network.subnet4);
  line("subnet6", config.network.subnet6);
  line("pods4", config.network.pods4);
  line("gateway4", config.network.gateway4);
  line("gateway6", config.network.gateway6);
  if (!config.labels.empty()) out += "[labels]\n";
  for (const auto& [key, value] : config.labels) out += fmt::format("{} = {}\n", quoted(key), quoted(value));
  if (!config.groups.empty()) out += "[groups]\n";
  for (const auto& [name, members] : config.groups) out += fmt::format("{} = {}\n", quoted(name), quoted(members));
  return out;
}

}  // namespace godwit::node
