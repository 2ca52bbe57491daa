#pragma once

#include "store/etcd_gateway.hpp"
#include "store/store.hpp"

/// A store in a cluster of etcd (v3 API, 3.4 or newer). Below the prefix:
///
///   pods/NAME          the record, JSON; compared as a whole, and swapped in one transaction
///   addresses/ADDRESS  the pod that has it; made and removed in the same transaction as its record
///   notes/KIND/KEY     a note
///   leased/KIND/KEY    says that it has a lease
///   alive/KIND/KEY     bound to the lease: when that ends, etcd removes it
///
/// Reads are linearizable: a member that has lost the others doesn't answer with what it remembers.
namespace godwit::store {

Result<std::unique_ptr<Store>> open_etcd(EtcdPlace place);

}  // namespace godwit::store
