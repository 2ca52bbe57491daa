#include <CLI/CLI.hpp>
#include <functional>

#include "cli/commands.hpp"
#include "cli/playground.hpp"
#include "node/version.hpp"

namespace {

using namespace godwit;
using namespace godwit::cli;

constexpr const char* about = R"(godwit moves running, unmodified processes between machines while they work.)";
constexpr const char* footer = R"(Examples:
  godwit run --name web --detach -- nginx -g 'daemon off;'
  godwit ps
  godwit migrate web b
  godwit history web
  godwit logs -f web

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused (nothing was changed); 4 no such pod or node;
5 daemon or node unreachable; 6 took too long; 7 the store is away, and ps or nodes show what the nodes
that answer know (with --json each pod has "store": "away"). run, attach and exec give the program's own (128 + n for
signal n), 125 when godwit itself failed, 126 when the program can't be executed, 127 when there is none.
Environment: GODWIT_SOCKET, the daemon's socket (default /run/godwit/godwit.sock).)";

/// A command of the table below: options are bound to variables that live as long as main.
struct Builder {
  CLI::App& app;
  Common& common;
  std::function<int()>& chosen;

  CLI::App& command(const std::string& name, const std::string& description, const std::string& examples,
                    std::function<int()> work) const {
    CLI::App* sub = app.add_subcommand(name, description);
    sub->footer("Examples:\n" + examples);
    add_common(*sub);
    sub->callback([&chosen = chosen, work = std::move(work)] { chosen = work; });
    return *sub;
  }
  void add_common(CLI::App& to) const {
    to.add_flag("--json", common.json, "Machine-readable output");
    to.add_option("--socket", common.socket, "The daemon's socket (GODWIT_SOCKET)")->type_name("PATH");
    to.add_option("--node", common.node, "Let this node's daemon do it, asked through ours")->type_name("NODE");
  }
};

void add_programs(const Builder& builder, RunOptions& run_options, ExecOptions& exec_options) {
  CLI::App& run = builder.command("run", "Start a pod and wait for its end", R"(  godwit run --name hello -- echo hello
  godwit run -it -- bash
  godwit run --detach --name cache --memory 512M --cpus 1.5 -- redis-server --port 6379
  godwit run --needs secure --needs zone=x -- ./payroll)",
                                  [&] { return cli::run(builder.common, run_options); });
  run.add_option("--name", run_options.name, "Name in the whole cluster; one is made up otherwise");
  run.add_option("-e,--env", run_options.environment, "NAME=value, or NAME as it is here; may be repeated")
      ->allow_extra_args(false);
  run.add_flag("-i,--input", run_options.input, "Our stdin is the program's");
  run.add_flag("-t,--terminal", run_options.terminal, "Give it a terminal (Ctrl-P Ctrl-Q detaches)");
  run.add_flag("-d,--detach", run_options.detach, "Don't wait: print the name and return. The pod is kept until rm");
  run.add_flag("--keep", run_options.keep, "Keep the ended pod and its log until rm");
  run.add_option("--memory", run_options.memory, "Limit: 512M, 2G");
  run.add_option("--cpus", run_options.cpus, "Limit in processors: 1.5")->check(CLI::PositiveNumber);
  run.add_option("--needs", run_options.needs, "Label that a node must have to run it: secure, zone=x; may be repeated")
      ->allow_extra_args(false);
  run.add_option("-u,--user", run_options.user, "Run as this user, whose the pod then is (root only)");
  run.add_option("--capabilities", run_options.capabilities,
                 "What root's programs may have at most: none, or names such as NET_BIND_SERVICE,CHOWN")
      ->delimiter(',')
      ->allow_extra_args(false);
  run.add_option("--hostname", run_options.hostname, "Default: the pod's name");
  run.add_option("-w,--workdir", run_options.directory, "Directory that it starts in");
  run.add_option("command", run_options.command, "-- COMMAND ARGUMENT…")->required();

  CLI::App& exec = builder.command("exec", "Run another program in a pod", R"(  godwit exec web -- ps aux
  godwit exec -it web -- bash)",
                                   [&] { return cli::exec(builder.common, exec_options); });
  exec.add_option("-e,--env", exec_options.environment, "NAME=value; may be repeated")->allow_extra_args(false);
  exec.add_flag("-i,--input", exec_options.input, "Our stdin is the program's");
  exec.add_flag("-t,--terminal", exec_options.terminal, "Give it a terminal");
  exec.add_option("-w,--workdir", exec_options.directory, "Directory that it starts in");
  exec.add_option("pod", exec_options.pod, "Pod")->required();
  exec.add_option("command", exec_options.command, "-- COMMAND ARGUMENT…")->required();
}

struct Simple {
  std::vector<std::string> pods;
  std::string pod, place, signal = "TERM", shell;
  double grace = 10;
  bool force = false, follow = false, no_input = false, replay = false;
  PsOptions ps;
  NodesOptions nodes;
};

void add_pods(const Builder& builder, Simple& simple) {
  const Common& common = builder.common;
  const auto many = [&](CLI::App& app) { app.add_option("pods", simple.pods, "Pods")->required(); };
  CLI::App& ps =
      builder.command("ps", "List the cluster's pods", "  godwit ps\n  godwit ps --json\n  godwit ps --watch",
                      [&] { return cli::ps(common, simple.ps); });
  ps.add_flag("--local", simple.ps.local, "Only this node's");
  ps.add_flag("-q,--quiet", simple.ps.quiet, "Names only");
  ps.add_flag("-w,--watch", simple.ps.watch, "Go on showing it");
  CLI::App& nodes = builder.command("nodes", "List the cluster's nodes, also those that are away",
                                    "  godwit nodes\n  godwit nodes --watch\n  godwit nodes --forget c",
                                    [&] { return cli::nodes(common, simple.nodes); });
  nodes.add_flag("-w,--watch", simple.nodes.watch, "Go on showing it");
  nodes.add_option("--forget", simple.nodes.forget, "Take this one, which is away for good, out of the list")
      ->type_name("NODE");
  many(builder.command("inspect", "Show everything about pods, as JSON", "  godwit inspect web",
                       [&] { return cli::inspect(common, simple.pods); }));
  CLI::App& stop = builder.command("stop", "End pods: SIGTERM, and SIGKILL when that doesn't do it",
                                   "  godwit stop web\n  godwit stop --time 30 web cache",
                                   [&] { return cli::stop(common, simple.pods, simple.grace); });
  stop.add_option("--time", simple.grace, "Seconds until SIGKILL")->check(CLI::Range(0.0, 3600.0));
  many(stop);
  CLI::App& kill = builder.command("kill", "Send a signal to pods' first programs", "  godwit kill -s HUP web",
                                   [&] { return cli::kill(common, simple.pods, simple.signal); });
  kill.add_option("-s,--signal", simple.signal, "Name or number");
  many(kill);
  CLI::App& remove =
      builder.command("rm", "Forget ended pods: log, files, name, address", "  godwit rm web\n  godwit rm --force web",
                      [&] { return cli::remove(common, simple.pods, simple.force); });
  remove.add_flag("-f,--force", simple.force, "Also running ones");
  many(remove);
  many(builder.command("wait", "Wait for the end of pods, and give the last one's exit code", "  godwit wait web",
                       [&] { return cli::wait(common, simple.pods); }));
  CLI::App& logs = builder.command("logs", "Show what a pod has written, wherever it has been",
                                   "  godwit logs web\n  godwit logs -f web",
                                   [&] { return cli::logs(common, simple.pod, simple.follow); });
  logs.add_flag("-f,--follow", simple.follow, "Go on until its end");
  logs.add_option("pod", simple.pod, "Pod")->required();
  CLI::App& attach = builder.command("attach", "Join a pod's streams (Ctrl-P Ctrl-Q detaches from a terminal)",
                                     "  godwit attach shell",
                                     [&] { return cli::attach(common, simple.pod, simple.no_input, simple.replay); });
  attach.add_flag("--no-input", simple.no_input, "Only its output");
  attach.add_flag("--replay", simple.replay, "Begin with all that it has written");
  attach.add_option("pod", simple.pod, "Pod")->required();
}

void add_others(const Builder& builder, MigrateOptions& options, DrainOptions& drain_options,
                HistoryOptions& history_options, Simple& simple) {
  const Common& common = builder.common;
  CLI::App& migrate = builder.command("migrate", "Move a running pod to another node", R"(  godwit migrate web b
  godwit migrate --dry-run web b
  godwit migrate --strategy postcopy --json web b
  godwit migrate --deadline 30 web rack1
  godwit migrate web any
  godwit migrate --cancel web)",
                                      [&] { return cli::migrate(common, options); });
  migrate.add_option("--strategy", options.strategy, "auto, freeze, precopy, postcopy, hybrid or eager-dirty")
      ->check(CLI::IsMember({"auto", "freeze", "precopy", "postcopy", "hybrid", "eager-dirty"}));
  migrate.add_flag("--dry-run", options.dry_run, "Only say what would be refused, and what to expect");
  migrate.add_flag("--cancel", options.cancel, "Give a migration up that is under way (Ctrl-C does the same)");
  migrate.add_option("--connections", options.connections, "For pages; 0: as many as pay")->check(CLI::Range(0, 16));
  migrate.add_option("pod", options.pod, "Pod")->required();
  migrate
      .add_option("--deadline", options.deadline, "Seconds; given up, with the pod as it was, when not done by then")
      ->check(CLI::Range(0.0, 86400.0));
  migrate.add_option("destination", options.destination, "Node, a group of the config, or any");
  CLI::App& history = builder.command("history", "List the moves of all nodes, the newest first", R"(  godwit history
  godwit history web --limit 5
  godwit history --show 3f09)",
                                      [&] { return cli::history(common, history_options); });
  history.add_option("--limit", history_options.limit, "How many")->check(CLI::Range(1, 1000))->capture_default_str();
  history.add_option("--show", history_options.show, "The whole report of this one; the beginning of its id will do")
      ->type_name("ID");
  history.add_option("pod", history_options.pod, "Only this pod's");
  CLI::App& drain = builder.command("drain", "Empty a node: it takes no pods, and all that it has move away",
                                    "  godwit drain\n  godwit drain --node b --to rack2\n  godwit drain --undo",
                                    [&] { return cli::drain(common, drain_options); });
  drain.add_option("--to", drain_options.to, "Node, group, or any (default)");
  drain.add_option("--strategy", drain_options.strategy, "auto, freeze, precopy, postcopy, hybrid or eager-dirty")
      ->check(CLI::IsMember({"auto", "freeze", "precopy", "postcopy", "hybrid", "eager-dirty"}));
  drain.add_flag("--only-close", drain_options.only_close, "It takes no more pods, and keeps what it has");
  drain.add_flag("--undo", drain_options.undo, "It takes pods again");
  CLI::App& resolve = builder.command("resolve", "Decide about a pod that is in doubt, or has left something behind",
                                      R"(  godwit resolve
  godwit resolve --node b --here web     it goes on at b: say so only when the other node's copy is known to be dead
  godwit resolve --node b --there web    the other node's copy is the pod: what b has of it is given up
  godwit resolve --node a --drop web     pages that web has left at a are given up: if it needs them it ends)",
                                      [&] { return cli::resolve(common, simple.pod, simple.place); });
  resolve.add_option("pod", simple.pod, "Pod; without, all of them are listed");
  for (const char* place : {"here", "there", "drop"})
    resolve.add_flag_callback(fmt::format("--{}", place), [&simple, place] { simple.place = place; });
  builder.command("check", "Say what this machine lacks for godwit, and what that costs",
                  "  godwit check\n  godwit check --json", [&] { return cli::check(common); });
  CLI::App& completion = builder.command("completion", "Print completion for a shell",
                                         "  source <(godwit completion bash)\n  godwit completion fish | source", [&] {
                                           fmt::print("{}", completion_script(simple.shell));
                                           return exit_code::ok;
                                         });
  completion.add_option("shell", simple.shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  // Its arguments are its own: it is called before anything is parsed. Here for the list of commands.
  builder.app.add_subcommand("playground", "Several machines on this one: up, down, exec, status, daemon, store, link");
}

void add_trust(const Builder& builder, TrustOptions& options) {
  const Common& common = builder.common;
  CLI::App& join = builder.command("join", "Make this machine a node of a cluster", R"(  godwit join --token "$TOKEN")",
                                   [&] { return cli::join(common, options); });
  join.add_option("--token", options.token, "What godwit pki token has printed")->required();
  join.add_flag("--again", options.again, "Replace the certificate that it has");

  CLI::App* pki = builder.app.add_subcommand("pki", "The cluster's authority, and who is a node");
  pki->require_subcommand(1);
  const Builder inner{*pki, builder.common, builder.chosen};
  CLI::App& init = inner.command("init", "Make a cluster's authority, and this node its first",
                                 "  godwit pki init\n  godwit pki init --label secure --lifetime 90d",
                                 [&] { return pki_init(common, options); });
  const auto label = [&](CLI::App& app) {
    app.add_option("--label", options.labels, "That the node has: secure, zone=x; may be repeated")
        ->allow_extra_args(false);
  };
  label(init);
  init.add_option("--lifetime", options.lifetime, "Of this node's certificate: 30d, 12h (it renews itself)");
  CLI::App& token = inner.command("token", "Make a token that lets one node in, once",
                                  "  godwit pki token --node b\n  godwit pki token --node c --label zone=x --valid 15m",
                                  [&] { return pki_token(common, options); });
  // Works on this machine's files: no other daemon is asked, and the name is that of the node to come.
  token.remove_option(token.get_option("--node"));
  token.add_option("--node", options.node, "Its name")->required();
  label(token);
  token.add_option("--address", options.address, "Where it reaches this node: HOST:PORT (default: this node's name)");
  token.add_option("--valid", options.valid, "For so long")->capture_default_str();
  CLI::App& expel = inner.command("expel", "Trust a node no more, at once and everywhere", "  godwit pki expel c",
                                  [&] { return pki_expel(common, options); });
  expel.add_option("node", options.node, "Node")->required();
  inner.command("renew", "Renew a node's certificate now, a third of its life after the last time",
                "  godwit pki renew\n  godwit pki renew --node b", [&] { return pki_renew(common); });
  inner.command("show", "Show this node's certificate", "  godwit pki show", [&] { return pki_show(common); });
}

int run_command(int count, char** values) {
  CLI::App app{about, "godwit"};
  app.footer(footer);
  app.set_version_flag("--version", std::string("godwit ") + node::version);
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", "Print this help and exit");
  Common common;
  std::function<int()> chosen;
  RunOptions run_options;
  ExecOptions exec_options;
  Simple simple;
  MigrateOptions migrate_options;
  DrainOptions drain_options;
  HistoryOptions history_options;
  TrustOptions trust_options;
  const Builder builder{app, common, chosen};
  builder.add_common(app);
  add_programs(builder, run_options, exec_options);
  add_pods(builder, simple);
  add_others(builder, migrate_options, drain_options, history_options, simple);
  add_trust(builder, trust_options);
  try {
    app.parse(count, values);
  } catch (const CLI::ParseError& error) {
    const bool asked = error.get_exit_code() == 0;
    const int code = app.exit(error, std::cout, std::cerr);
    return asked ? code : exit_code::usage;
  }
  try {
    return chosen ? chosen() : exit_code::usage;
  } catch (const std::exception& problem) {
    // An answer of another shape than this version expects, say.
    return complain(common, Error{ErrorKind::failed, fmt::format("unexpected: {}", problem.what()), 0,
                                  "are godwit and godwitd of the same version?"});
  }
}

}  // namespace

int main(int count, char** values) {
  if (count >= 2 && std::string_view(values[1]) == "playground")
    return playground_main(std::vector<std::string>(values + 2, values + count));
  return run_command(count, values);
}
