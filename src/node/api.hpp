#pragma once

#include "node/links.hpp"
#include "node/membership.hpp"
#include "node/moves.hpp"
#include "node/pods.hpp"
#include "node/registry.hpp"
#include "node/rules.hpp"

namespace godwit::node {

namespace http {
struct Request;
}

/// The HTTP API: on the Unix socket for commands, and between daemons over the service `api`. A request about a pod
/// that is elsewhere is passed on to the node that owns it, by the daemon that got it.
///
///   GET    /v1/node                     this node
///   POST   /v1/node                     {"draining": true}: take no pods and start none
///   POST   /v1/node/resolve             {"pod", "place": "here", "there" or "drop"}: an operator's word about a pod
///                                       that is in doubt on this node, or has left something here
///   POST   /v1/trust                    {"reload": true}: take the files of [tls] anew, and tell the peers whom they
///                                       expel; {"renew": true}: a new certificate
///   GET    /v1/nodes                    the cluster, also what is away; ?fresh: every peer is asked
///   DELETE /v1/nodes/NAME               forget one that is away
///   GET    /v1/changes                  answers at a change of pods, after a second at most; ?since=STATE
///   GET    /v1/history                  moves, the newest first; ?pod=NAME, ?limit=N
///   GET    /v1/history/ID               the report of one
///   GET    /v1/pods                     all pods of the cluster; ?local: of this node
///   POST   /v1/pods                     run one here
///   GET    /v1/pods/NAME                everything about it
///   DELETE /v1/pods/NAME                forget it; ?force: also when it runs
///   GET    /v1/pods/NAME/logs           ?follow, ?frames (stdout and stderr apart)
///   POST   /v1/pods/NAME/attach         upgrade to frames both ways; ?position=… or ?tail, ?input,
///                                       ?execution=ID
///   POST   /v1/pods/NAME/exec           {"command", …}: start a program beside its first; {"execution": ID}, to be
///                                       attached to within half a minute
///   DELETE /v1/pods/NAME/exec/ID        its terminal hangs up, its pipes break; it is forgotten
///   POST   /v1/pods/NAME/wait           answers when it has ended
///   POST   /v1/pods/NAME/kill           {"signal": 15}
///   POST   /v1/pods/NAME/stop           {"grace_ms": 10000}
///   POST   /v1/pods/NAME/migrate        {"destination", "strategy", "dry_run", "connections", "deadline_ms"}: lines of
///                                       JSON with the progress, the last one with the report
///   POST   /v1/pods/NAME/migrate/cancel
///
/// The node's own state, resolve, forgetting a node are root's. Everybody else sees and commands pods of their own, as
/// far as the config's [users] allows.
///
/// Errors are {"error": {"kind", "message", …}}. A pod is followed when it moves while it is waited for, logged or
/// attached to.
struct Api {
  const Links& links;
  Pods& pods;
  Moves& moves;
  Starter& starter;
  store::Store& store;
  Doubts& doubts;
  Remainders& remainders;
  const Registry& registry;
  const Rules& rules;
  Membership* membership = nullptr;  ///< null: plain
  pod::User caller{};  ///< in whose name the request is made: others' pods are not there for anybody but root

  /// Serves the one request of a connection: of `caller`, or of a peer, who says whose it is.
  void serve(Stream& client, const pod::User& caller) const;
  void serve_peer(Stream& client, const Sender& peer) const;

  [[nodiscard]] bool sees(std::uint32_t uid) const { return caller.is_root() || caller.uid == uid; }

 private:
  void serve(Stream& client, const http::Request&) const;
};

}  // namespace godwit::node
