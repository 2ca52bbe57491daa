#pragma once

#include <memory>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::pod {

struct Setup;

/// The single-threaded process that pods' inits are forked from: the daemon has threads, and after a fork of those
/// little is allowed. It holds nothing and ends with the daemon; inits don't.
class Zygote {
 public:
  /// To be called first thing in main: before any thread, and before there is memory or a secret that an init need not
  /// inherit.
  static Result<Zygote> start();

  struct Born {
    HostPid init;
    Fd pidfd;
  };
  /// Forks an init into new namespaces (its clocks set before it enters them). `descriptors` in the order of
  /// init_protocol.hpp. Thread-safe. What the init says about its own beginning comes over its control socket.
  Result<Born> spawn(const Setup&, const std::vector<int>& descriptors);

  [[nodiscard]] HostPid process() const;

  Zygote(Zygote&&) noexcept;
  Zygote& operator=(Zygote&&) noexcept;
  ~Zygote();  ///< waits for its end

 private:
  struct Parts;
  explicit Zygote(std::unique_ptr<Parts>);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::pod
