#pragma once

#include <functional>
#include <memory>

#include "node/links.hpp"
#include "store/store.hpp"

/// The store of another daemon, over the service `store`: MessagePack requests and answers, one at a time on a
/// connection.
namespace godwit::node {

/// A store that asks the daemon `peer`. Keeps connections open and warm, so that a call costs one round trip; a call
/// whose answer was lost is found out about on a new connection before it is given up as `unreachable`.
std::unique_ptr<store::Store> open_store_link(const Links&, const std::string& peer);

/// Whether the caller may make, move or remove this record.
using MayChange = std::function<Result<void>(const store::Record&)>;

/// Answers requests of the node `peer` on `caller` until the caller goes. Of the notes it changes only those that it
/// has to: what it says of itself, and the moves that it was the source of; it also erases what a node that is away has
/// said. The rest is `refused`, or `invalid` where it isn't what a node of ours would write.
void serve_store(Stream& caller, const std::string& peer, store::Store&, const MayChange&);

}  // namespace godwit::node
