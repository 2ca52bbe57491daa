#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>

#include "sim/explore.hpp"
#include "sim/world.hpp"

/// `./dev sim`: exit code 0 when nothing was found, 1 when an invariant was broken, 2 for a wrong command.
namespace godwit::sim {
namespace {

constexpr const char* examples = R"(
Examples:
  ./dev sim                          two hundred clusters, a seed each
  ./dev sim --time 600 --nodes 1000  ten minutes of large ones
  ./dev sim --seed 42 --trace        one of them again, exactly, with all that happened
  ./dev sim --explore                every order of events in a small world
  ./dev sim --bug no-fence           shows that this bug would be found)";

struct Options {
  std::optional<std::uint64_t> seed;
  std::uint64_t first = 1, runs = 200;
  std::optional<double> time;
  int nodes = 0, span = 20;
  bool trace = false, explore = false, bugs = false;
  std::string bug;
  std::size_t most_states = 4'000'000;
};

void add(Counts& sum, const Counts& more) {
  for (const auto& [kind, count] : more) sum[kind] += count;
}

void print(const char* title, const Counts& counts) {
  fmt::print("{}:\n", title);
  for (const auto& [kind, count] : counts) fmt::print("  {:>10}  {}\n", count, kind);
}

void print(const Line& line) {
  fmt::print("  {:10.4f} s  {:>5} {:>5}  {}\n", static_cast<double>(line.at.count()) / 1e6,
             line.node < 0 ? "" : node_name(line.node), line.pod < 0 ? "" : pod_name(line.pod), line.text);
}

void report(Setup setup, const Outcome& found) {
  const Violation& violation = *found.violation;
  fmt::print("seed {}: {}: {}{}\n", setup.seed, violation.invariant,
             violation.pod < 0 ? "" : pod_name(violation.pod) + ": ", violation.text);
  // The same once more, and what has to do with it.
  setup.trace = true;
  const Outcome again = World(setup).run();
  for (const auto& line : again.trace)
    if (violation.pod < 0 || line.pod < 0 || line.pod == violation.pod) print(line);
  fmt::print("again: ./dev sim --seed {}{}{} --span {} --trace\n", setup.seed,
             setup.nodes != 0 ? fmt::format(" --nodes {}", setup.nodes) : "",
             setup.bug != Bug::none
                 ? fmt::format(" --bug {}", std::ranges::find(planted(), setup.bug, &Planted::bug)->name)
                 : "",
             setup.time.count());
}

int simulate(const Options& options, Bug bug) {
  const auto begin = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  Counts faults, moves;
  std::uint64_t events = 0, runs = 0;
  double told = 0, simulated = 0;
  int code = 0;
  const std::uint64_t first = options.seed.value_or(options.first);
  const auto more = [&] {
    if (options.seed) return runs == 0;
    return options.time ? spent() < *options.time : runs < options.runs;
  };
  while (more()) {
    const Setup setup{first + runs, options.nodes, std::chrono::seconds(options.span), bug, options.trace};
    const Outcome outcome = World(setup).run();
    ++runs;
    events += outcome.events;
    simulated += static_cast<double>(outcome.time.count()) / 1e6;
    add(faults, outcome.faults);
    add(moves, outcome.moves);
    if (options.trace && !outcome.violation)
      for (const auto& line : outcome.trace) print(line);
    if (outcome.violation) {
      report(setup, outcome);
      code = 1;
      break;
    }
    if (spent() - told > 5) {
      told = spent();
      fmt::print(stderr, "seed {}: {} events, {} moves committed\n", setup.seed, events, moves["committed"]);
    }
  }
  print("faults", faults);
  print("moves", moves);
  fmt::print("{} runs, {} events, {:.0f} s simulated: {}\n", runs, events, simulated,
             code == 0 ? "nothing found" : "an invariant is broken");
  return code;
}

int explore_all(const Options& options, Bug bug) {
  std::size_t states = 0;
  for (const auto& world : small_worlds()) {
    const Explored explored = explore(world, bug, options.most_states);
    states += explored.states;
    fmt::print("{:<38} {:>8} states, {:>8} steps, {:>3} ends, {:>2} deep: {}\n", world.name, explored.states,
               explored.transitions, explored.ends, explored.depth,
               !explored.violation.empty() ? explored.violation
               : explored.complete         ? "nothing found"
                                           : "given up, too many");
    for (const auto& event : explored.events) fmt::print("    {}\n", event);
    if (!explored.violation.empty() || !explored.complete) return 1;
  }
  fmt::print("{} states in all: nothing found\n", states);
  return 0;
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("The code in control/, under a simulated cluster that fails in every way that its seed says.",
               "./dev sim");
  app.footer(examples);
  app.add_option("--seed", options.seed, "only this one");
  app.add_option("--first", options.first, "first of the seeds")->capture_default_str();
  auto* runs = app.add_option("--runs", options.runs, "how many seeds")->capture_default_str();
  app.add_option("--time", options.time, "as many as there is time for, in seconds")->excludes(runs);
  app.add_option("--nodes", options.nodes, "size of the cluster; 0: from 3 to 10, the seed says")
      ->check(CLI::Range(0, 10'000));
  app.add_option("--span", options.span, "simulated seconds of faults; then all is healed, and must end")
      ->capture_default_str();
  app.add_flag("--trace", options.trace, "print all that happens");
  app.add_flag("--explore", options.explore, "try every order of events in a small world instead");
  app.add_option("--most-states", options.most_states, "of it")->capture_default_str();
  app.add_option("--bug", options.bug, "plant this bug");
  app.add_flag("--bugs", options.bugs, "list the bugs there are");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  if (options.bugs) {
    for (const auto& bug : planted())
      fmt::print("{:<22} {:<10} {:<9} {}\n", bug.name, bug.simulated ? "simulated" : "", bug.explored ? "explored" : "",
                 bug.what);
    return 0;
  }
  Bug bug = Bug::none;
  if (!options.bug.empty()) {
    const auto known = bug_named(options.bug);
    if (!known) {
      fmt::print(stderr, "sim: no bug named '{}' (--bugs lists them)\n", options.bug);
      return 2;
    }
    bug = *known;
  }
  return options.explore ? explore_all(options, bug) : simulate(options, bug);
}

}  // namespace
}  // namespace godwit::sim

int main(int argc, char** argv) {
  return godwit::sim::run(argc, argv);
}
