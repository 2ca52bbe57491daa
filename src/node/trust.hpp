#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "node/credentials.hpp"

namespace godwit::node {

/// Whom this node trusts by now: its credentials, which change while it runs (renewed, somebody expelled), and the
/// connections that stand on them. Thread-safe.
class Trust {
 public:
  /// Reads the files of [tls].
  static Result<std::unique_ptr<Trust>> open(const Config&);

  /// TLS to `peer` over a connected socket. `refused` with the reason when one side doesn't trust the other.
  Result<Stream> connect(Fd, const std::string& peer, Deadline) const;

  struct Guest {
    Stream stream;
    std::string name;       ///< by its certificate; empty without one
    std::string objection;  ///< why it isn't welcome; empty when it is
  };
  /// TLS with whoever has connected. Who has no certificate has no objection either: such a guest may only join.
  Result<Guest> accept(Fd, Deadline) const;

  [[nodiscard]] std::shared_ptr<const pki::Credentials> credentials() const;
  /// Which list of the expelled we have.
  [[nodiscard]] std::uint64_t list_number() const { return pki::number_of(credentials()->expelled()); }

  /// Takes a list that somebody has sent: true when it is newer than ours, written down, and in force. Connections with
  /// who is on it are broken off. `invalid` when the authority hasn't signed it.
  Result<bool> install(const std::string& list_pem);
  /// Takes a certificate for the key that we have.
  Result<void> install(pki::Certificate);
  /// Takes what was written into the files meanwhile.
  Result<void> reload();

 private:
  struct Connections;
  Trust(std::string node, Config::Tls files) : node_(std::move(node)), files_(std::move(files)) {}
  void use(std::shared_ptr<const pki::Credentials>);
  /// Remembers it until its end; false when its certificate was expelled while it was being made.
  [[nodiscard]] bool keep(const Stream&) const;

  const std::string node_;
  const Config::Tls files_;
  std::mutex changing_;  ///< one change at a time
  mutable std::mutex mutex_;
  std::shared_ptr<const pki::Credentials> credentials_;
  std::shared_ptr<Connections> connections_;
};

}  // namespace godwit::node
