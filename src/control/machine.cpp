#include "control/machine.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/names.hpp"

namespace godwit::control {

namespace {

constexpr std::size_t most_named = 16;

/// Bits of XCR0, by the names of the Intel SDM (volume 1, 13.1).
constexpr std::array register_states{std::pair{0U, "x87"},       std::pair{1U, "SSE"},       std::pair{2U, "AVX"},
                                     std::pair{3U, "BNDREGS"},   std::pair{4U, "BNDCSR"},    std::pair{5U, "opmask"},
                                     std::pair{6U, "ZMM_Hi256"}, std::pair{7U, "Hi16_ZMM"},  std::pair{9U, "PKRU"},
                                     std::pair{17U, "TILECFG"},  std::pair{18U, "TILEDATA"}, std::pair{19U, "APX"}};

std::string in_words(const std::vector<std::string>& names) {
  const std::size_t shown = std::min(names.size(), most_named);
  const auto end = names.begin() + static_cast<std::ptrdiff_t>(shown);
  return fmt::format("{}{}", fmt::join(names.begin(), end, ", "),
                     shown < names.size() ? fmt::format(" and {} more", names.size() - shown) : "");
}

std::vector<std::string> names_of(std::uint64_t xfeatures) {
  std::vector<std::string> names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((xfeatures >> bit & 1) == 0) continue;
    const auto known = std::ranges::find(register_states, bit, &std::pair<unsigned, const char*>::first);
    names.push_back(known != register_states.end() ? known->second : fmt::format("number {}", bit));
  }
  return names;
}

}  // namespace

bool plausible(const Machine& machine) {
  const auto good = [](const std::string& text) { return text.size() <= machine_text_limit && printable(text); };
  return good(machine.kernel) && good(machine.vdso) && machine.cpu_flags.size() <= most_cpu_flags &&
         std::ranges::all_of(machine.cpu_flags, good);
}

std::vector<std::string> lacking(const std::string& node, const Machine& here, const Machine& needed) {
  std::vector<std::string> texts;
  if (here.vdso != needed.vdso)
    texts.push_back(
        fmt::format("{}'s kernel ({}) has another vdso than the one under the pod ({}): programs keep "
                    "addresses in it",
                    node, here.kernel, needed.kernel));
  if (const auto states = names_of(needed.xfeatures & ~here.xfeatures); !states.empty())
    texts.push_back(fmt::format("{}'s processor lacks the register state {}", node, in_words(states)));
  // Ours are sorted; what somebody else has sent needn't be.
  std::vector<std::string> flags;
  std::ranges::copy_if(needed.cpu_flags, std::back_inserter(flags),
                       [&](const std::string& flag) { return !std::ranges::binary_search(here.cpu_flags, flag); });
  if (!flags.empty()) texts.push_back(fmt::format("{}'s processor lacks {}", node, in_words(flags)));
  return texts;
}

}  // namespace godwit::control
