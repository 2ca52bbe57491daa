// A daemon's config. What is understood is written and read back the same.
#include "node/config.hpp"

#include "fuzz.hpp"

namespace {

using namespace godwit;

void one(BytesView input) {
  const std::string text(input.begin(), input.end());
  // A file of the machine's own: what it holds decides then.
  if (text.find("key_file") != std::string::npos) return;
  const auto config = node::parse_config(text, "input");
  if (!config) return;
  const auto again = node::parse_config(node::write_config(*config), "again");
  fuzz::require(again.has_value() && *again == *config, "a config is written and read back the same");
}

std::vector<Bytes> seeds() {
  node::Config config{.node = "a",
                      .peers = {{"b", "10.66.0.12:4070"}, {"c", "[fd66::1]:4070"}},
                      .key = "0123456789abcdef0123456789abcdef",
                      .store = "peer:b",
                      .labels = {{"zone", "x"}, {"secure", ""}},
                      .groups = {{"rack1", {"a", "b"}}}};
  config.network = {.bridge = "br0", .subnet4 = "10.66.0.0/16", .subnet6 = "fd66::/64"};
  return {fuzz::bytes_of(node::write_config(config)), fuzz::bytes_of("node = \"a\"\n[socket]\nmode = \"0660\"\n")};
}

}  // namespace

FUZZ_TARGET(one, seeds)
