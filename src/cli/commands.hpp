#pragma once

#include <map>
#include <string>
#include <vector>

#include "cli/client.hpp"

/// One function for each command; all return its exit code.
namespace godwit::cli {

struct RunOptions {
  std::string name, hostname, directory = "/";
  std::vector<std::string> environment;
  bool input = false, terminal = false, detach = false, keep = false;
  std::string memory;  ///< "512M"
  double cpus = 0;
  std::vector<std::string> needs;         ///< labels of the node
  std::string user;                       ///< empty: who asks
  std::vector<std::string> capabilities;  ///< empty: root all that the daemon has, others none
  std::vector<std::string> command;
};
int run(const Common&, const RunOptions&);

struct ExecOptions {
  std::string pod, directory = "/";
  std::vector<std::string> environment;
  bool input = false, terminal = false;
  std::vector<std::string> command;
};
int exec(const Common&, const ExecOptions&);
int attach(const Common&, const std::string& pod, bool no_input, bool replay);

struct PsOptions {
  bool local = false, quiet = false, watch = false;
};
int ps(const Common&, const PsOptions&);
struct NodesOptions {
  bool watch = false;
  std::string forget;  ///< the node that is away, and to be taken out of the list
};
int nodes(const Common&, const NodesOptions&);
int inspect(const Common&, const std::vector<std::string>& pods);
int stop(const Common&, const std::vector<std::string>& pods, double grace_seconds);
int kill(const Common&, const std::vector<std::string>& pods, const std::string& signal);
int remove(const Common&, const std::vector<std::string>& pods, bool force);
int wait(const Common&, const std::vector<std::string>& pods);
int logs(const Common&, const std::string& pod, bool follow);

struct MigrateOptions {
  std::string pod, destination;
  std::string strategy = "auto";
  bool dry_run = false, cancel = false;
  int connections = 0;
  double deadline = 0;  ///< seconds; 0: none
};
int migrate(const Common&, const MigrateOptions&);

struct HistoryOptions {
  std::string pod, show;
  std::uint64_t limit = 20;
};
/// The moves of the cluster, or the report of one.
int history(const Common&, const HistoryOptions&);

struct DrainOptions {
  std::string strategy = "auto", to = "any";
  bool undo = false, only_close = false;
};
/// Moves all pods of a node away, after it takes no new ones.
int drain(const Common&, const DrainOptions&);

/// Lists what is in doubt and what pods have left behind; with a pod, an operator's word: "here", "there" or "drop".
int resolve(const Common&, const std::string& pod, const std::string& place);

struct TrustOptions {
  std::string node, address, token, lifetime, valid = "1h";
  std::vector<std::string> labels;
  bool again = false;
};
/// All but `pki_renew` work on this machine's files; `pki_expel` tells the daemon too.
int pki_init(const Common&, const TrustOptions&);
int pki_token(const Common&, const TrustOptions&);
int pki_expel(const Common&, const TrustOptions&);
int pki_renew(const Common&);
int pki_show(const Common&);
int join(const Common&, const TrustOptions&);

int check(const Common&);

/// The script for "bash", "zsh" or "fish"; empty for another shell.
std::string completion_script(const std::string& shell);

/// "512M", "1.5G", "4096": bytes.
Result<std::uint64_t> parse_size(const std::string&);
/// "TERM", "SIGTERM", "15".
Result<int> parse_signal(const std::string&);

}  // namespace godwit::cli
