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

/// Answers requests on `caller` until the caller goes.
void serve_store(Stream& caller, store::Store&, const MayChange&);

}  // namespace godwit::node
